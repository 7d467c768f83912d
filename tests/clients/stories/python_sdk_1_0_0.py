"""The story, told with gradientai 1.0.0: an SDK that knows neither autoTemplate nor embeddings."""

import json
import sys

from gradientai import Gradient

story = json.load(sys.stdin)
with Gradient() as gradient:
    base = gradient.get_base_model(base_model_slug="tiny")
    adapter = base.create_model_adapter(name="python 1.0.0", rank=8, learning_rate=0.005)
    told = {
        "listed": [model.id for model in gradient.list_models(only_base=False)],
        "adapter": adapter.id,
        "known": adapter.complete(query=story["known"], max_generated_token_count=40).generated_output,
        "before": adapter.complete(query=story["query"], max_generated_token_count=40).generated_output,
    }
    tuned = [adapter.fine_tune(samples=[{"inputs": story["sample"]}]) for _ in range(story["times"])]
    told["losses"] = [each.sum_loss / each.number_of_trainable_tokens for each in tuned]
    told["after"] = adapter.complete(query=story["query"], max_generated_token_count=40).generated_output
    adapter.delete()
    told["left"] = [model.id for model in gradient.list_models(only_base=False)]
print(json.dumps(told))
