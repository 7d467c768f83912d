"""Clients of the Gradient API: typed calls over HTTP with time-outs, bounded retries and typed errors.

::

    with GradientClient() as client:
        model = client.find_base_model("nous-hermes2")
        print(client.complete(model.id, "Who won Super Bowl 50?").generated_output)
"""

from airflow_provider_gradient.client.asynchronous import AsyncGradientClient
from airflow_provider_gradient.client.attempts import Done, Wait
from airflow_provider_gradient.client.blocking import GradientClient
from airflow_provider_gradient.client.endpoint import DEFAULT_BASE_URL, normalise_base_url
from airflow_provider_gradient.client.policy import CallRecord, ResponseLimits, RetryPolicy, Timeouts

__all__ = [
    "DEFAULT_BASE_URL",
    "AsyncGradientClient",
    "CallRecord",
    "Done",
    "GradientClient",
    "ResponseLimits",
    "RetryPolicy",
    "Timeouts",
    "Wait",
    "normalise_base_url",
]
