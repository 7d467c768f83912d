"""How the built-in tiny model is made: its world, its corpus, its training, its figures and the demo's data.

Run from the repository's root, one thread each::

    python -m scripts.tiny_model.train        # corpus → weights, tokenizer and configuration (about a
    quarter hour) python -m scripts.tiny_model.make_story   # the example DAGs' questions and phrasings
    python -m scripts.tiny_model.measure      # the model card
    python -m scripts.tiny_model.tuning_curve # the card's figures of tuning
"""
