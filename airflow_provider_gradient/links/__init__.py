"""Links from a task in Airflow's UI to the page of the plugin."""

from airflow_provider_gradient.links.page import GradientPageLink

__all__ = ["GradientPageLink"]
