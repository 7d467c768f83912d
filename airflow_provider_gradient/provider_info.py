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
PAGE_PREFIX = "/gradient"
"""Where Airflow's API server has the Gradient page."""
PROGRESS_KEY = "gradient_progress"
"""Key of the XCom by which a running task tells how far it is."""

_INTEGRATION = "Gradient"
_HOOK_CLASS = "airflow_provider_gradient.hooks.gradient.GradientHook"
_OPERATOR_MODULES = [
    "airflow_provider_gradient.operators.models",
    "airflow_provider_gradient.operators.registry",
    "airflow_provider_gradient.operators.completions",
    "airflow_provider_gradient.operators.shards",
    "airflow_provider_gradient.operators.embeddings",
    "airflow_provider_gradient.operators.evaluation",
    "airflow_provider_gradient.operators.tuning",
    "airflow_provider_gradient.operators.loop",
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
        "sensors": [
            {
                "integration-name": _INTEGRATION,
                "python-modules": ["airflow_provider_gradient.sensors.gradient"],
            }
        ],
        "triggers": [
            {
                "integration-name": _INTEGRATION,
                "python-modules": ["airflow_provider_gradient.triggers.gradient"],
            }
        ],
        "connection-types": [
            {
                "connection-type": CONNECTION_TYPE,
                "hook-class-name": _HOOK_CLASS,
                "hook-name": HOOK_NAME,
                "conn-fields": connection_fields(),
                "ui-field-behaviour": field_behaviour(),
            }
        ],
        "task-decorators": [
            {
                "name": "gradient_complete",
                "class-name": "airflow_provider_gradient.decorators.complete.gradient_complete_task",
            },
            {
                "name": "gradient_evaluate",
                "class-name": "airflow_provider_gradient.decorators.evaluate.gradient_evaluate_task",
            },
        ],
        "extra-links": ["airflow_provider_gradient.links.page.GradientPageLink"],
        "asset-uris": [
            {
                "schemes": ["gradient"],
                "handler": "airflow_provider_gradient.assets.gradient.sanitize_uri",
                "factory": "airflow_provider_gradient.assets.gradient.create_asset",
                "to_openlineage_converter": (
                    "airflow_provider_gradient.assets.gradient.convert_asset_to_openlineage"
                ),
            }
        ],
        "notifications": ["airflow_provider_gradient.notifications.report.GradientReportNotifier"],
        "config": configuration(),
    }


def configuration() -> dict[str, Any]:
    """The options of the section ``[gradient]`` of Airflow's configuration."""
    return {
        "gradient": {
            "description": "Gradient: model adapters, completions and their aliases.",
            "options": {
                "registry": {
                    "description": (
                        "Path or URL of the folder where aliases of model adapters are kept. All machines "
                        "that run tasks must see it. Default: gradient/registry in AIRFLOW_HOME."
                    ),
                    "version_added": None,
                    "type": "string",
                    "example": "s3://aws_default@bucket/gradient/registry",
                    "default": "",
                }
            },
        }
    }


def field_behaviour() -> dict[str, Any]:
    """Which of a connection's standard fields the form shows, and how it names them."""
    return {
        "hidden-fields": ["schema", "login", "extra"],
        "relabeling": {"host": "Server URL", "password": "Access token"},
        "placeholders": {
            "host": "https://gradient.example.com/api",
            "password": "the token the server was started with",
            "port": "443; the test button of Airflow 3.3.1 and 3.3.2 needs it",
        },
    }


def connection_fields() -> dict[str, dict[str, Any]]:
    """The form's own fields, stored under these names in the connection's ``extra``."""
    return {
        "workspace_id": {
            "label": "Workspace id",
            "description": "The workspace whose models are used; sent with every call.",
            "schema": {"type": "string"},
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
    return {"label": label, "description": description, "schema": {"type": ["number", "null"], "minimum": 1}}
