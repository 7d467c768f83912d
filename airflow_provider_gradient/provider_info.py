"""What Airflow knows of this provider before it imports any of it: one place for names, modules and the
connection form.

Airflow reads :func:`get_provider_info` through the ``apache_airflow_provider`` entry point in every
component, so importing this module costs nothing. Airflow draws the form from ``conn-fields`` (kept in the
connection's ``extra``) and ``ui-field-behaviour`` (the standard fields);
:class:`~.hooks.gradient.GradientHook` reads what it stores.
"""

from __future__ import annotations

from typing import Any

from airflow_provider_gradient import __version__

PACKAGE_NAME = "airflow-provider-gradient"
CONNECTION_TYPE = "gradient"
HOOK_NAME = "Gradient"
DEFAULT_CONNECTION_ID = "gradient_default"

_INTEGRATION = "Gradient"
_HOOK_CLASS = "airflow_provider_gradient.hooks.gradient.GradientHook"
_OPERATOR_MODULES = [
    "airflow_provider_gradient.operators.models",
    "airflow_provider_gradient.operators.completions",
    "airflow_provider_gradient.operators.evaluation",
    "airflow_provider_gradient.operators.tuning",
]


def get_provider_info() -> dict[str, Any]:
    """The provider's metadata, as Airflow's ``provider_info.schema.json`` describes it."""
    return {
        "package-name": PACKAGE_NAME,
        "name": "Gradient",
        "description": (
            "Complete datasets with LLMs, evaluate the answers and fine-tune model adapters, on any server "
            "that speaks the Gradient API; one of your own comes with the package."
        ),
        "versions": [__version__],
        "integrations": [{"integration-name": _INTEGRATION, "tags": ["ai", "service"]}],
        "hooks": [
            {
                "integration-name": _INTEGRATION,
                "python-modules": ["airflow_provider_gradient.hooks.gradient"],
            }
        ],
        "operators": [{"integration-name": _INTEGRATION, "python-modules": list(_OPERATOR_MODULES)}],
        "connection-types": [
            {
                "connection-type": CONNECTION_TYPE,
                "hook-class-name": _HOOK_CLASS,
                "hook-name": HOOK_NAME,
                "conn-fields": connection_fields(),
                "ui-field-behaviour": field_behaviour(),
            }
        ],
    }


def field_behaviour() -> dict[str, Any]:
    """Which of a connection's standard fields the form shows, and how it names them."""
    return {
        "hidden-fields": ["schema", "login", "port", "extra"],
        "relabeling": {"host": "Server URL", "password": "Access token"},
        "placeholders": {
            "host": "https://gradient.example.com/api",
            "password": "the token the server was started with",
        },
    }


def connection_fields() -> dict[str, dict[str, Any]]:
    """The form's own fields, stored under these names in the connection's ``extra``."""
    return {
        "workspace_id": {
            "label": "Workspace id",
            "description": "The workspace whose models are used; sent with every call. Required.",
            "schema": {"type": ["string", "null"]},
        },
        "connect_timeout": _seconds(
            "Connect time-out (s)", "Seconds to wait for a connection; 10 where left empty."
        ),
        "read_timeout": _seconds(
            "Read time-out (s)", "The longest silence of the server while it answers; 120 where left empty."
        ),
        "total_timeout": _seconds(
            "Total time-out (s)", "Seconds one call may take, its repetitions included; 600 where left empty."
        ),
        "ca_bundle": {
            "label": "CA bundle",
            "description": (
                "Path, on the workers, of a PEM file with certificate authorities to trust besides the "
                "system's; for servers with a private certificate."
            ),
            "schema": {"type": ["string", "null"]},
        },
    }


def _seconds(label: str, description: str) -> dict[str, Any]:
    return {"label": label, "description": description, "schema": {"type": ["number", "null"], "minimum": 0}}
