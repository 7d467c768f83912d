"""Objects by dotted path, ``package.module:name``: what a DAG file names without importing it."""

from __future__ import annotations

import importlib
import operator
from typing import Any

from airflow_provider_gradient.api import InvalidRequestError


def import_path(path: str, *, parameter: str) -> Any:
    """The object at ``path``.

    :param parameter: that was given the path, for messages.
    :raises InvalidRequestError: it is no such path, or there is no such module or name. What a module raises
        that is there is raised as it is.
    """
    module_name, _, name = path.partition(":")
    if not module_name or not name:
        raise InvalidRequestError(f"{parameter}: {path!r} is no dotted path such as 'package.module:name'")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise InvalidRequestError(
            f"{parameter}: {path!r}: there is no module {error.name!r} to import here"
        ) from None
    try:
        return operator.attrgetter(name)(module)
    except AttributeError:
        raise InvalidRequestError(f"{parameter}: the module {module_name} has no {name!r}") from None
