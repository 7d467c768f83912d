"""What waits in Airflow's triggerer for a Gradient server."""

from airflow_provider_gradient.triggers.gradient import GradientTrigger

__all__ = ["GradientTrigger"]
