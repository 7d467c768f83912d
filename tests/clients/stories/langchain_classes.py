"""The story, told with langchain_community's classes; adapters are made by the SDK that it needs."""

import json
import sys

import gradientai
from langchain_community.embeddings import GradientEmbeddings
from langchain_community.llms import GradientLLM

story = json.load(sys.stdin)
with gradientai.Gradient() as gradient:
    base = gradient.get_base_model(base_model_slug="tiny")
    adapter = base.create_model_adapter(name="langchain_community", rank=8, learning_rate=0.005)
    llm = GradientLLM(model=adapter.id, model_kwargs={"max_generated_token_count": 40})
    told = {
        "listed": [model.id for model in gradient.list_models(only_base=False)],
        "adapter": adapter.id,
        "known": llm.invoke(story["known"]),
        "before": llm.invoke(story["query"]),
        "losses": [llm.train_unsupervised([story["sample"]])["loss"] for _ in range(story["times"])],
        "after": llm.invoke(story["query"]),
        "vectors": GradientEmbeddings(model="bge-large").embed_documents(story["texts"]),
    }
    adapter.delete()
    told["left"] = [model.id for model in gradient.list_models(only_base=False)]
print(json.dumps(told))
