"""A Gradient server of one's own: the Gradient API's models operations, with real generation and training.

``python -m airflow_provider_gradient.server`` starts it. Only this package imports torch.
"""
