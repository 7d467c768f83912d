"""What is kept as JSON, in a file or an XCom, and read again, perhaps by another version of this package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from airflow_provider_gradient.api import describe_validation_error
from airflow_provider_gradient.datasets.errors import JournalError


class KeptRecord(BaseModel):
    """A record that says which version of its schema it has.

    :cvar kind: what such a record is called, in messages.
    :cvar error: what reading something else raises.
    """

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    kind: ClassVar[str]
    error: ClassVar[type[Exception]] = JournalError

    schema_version: int

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON has it."""
        return self.model_dump(mode="json")

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """The record that :meth:`to_dict` gave.

        :raises Exception: that of :attr:`error`; names what is missing or wrong.
        """
        if not isinstance(fields, Mapping):
            raise cls.error(f"no {cls.kind}, which is a JSON object")
        version, known = fields.get("schema_version"), cls.model_fields["schema_version"].default
        if version != known:
            raise cls.error(f"a {cls.kind} of schema version {version!r}; this package reads {known}")
        try:
            return cls.model_validate(dict(fields))
        except ValidationError as error:
            raise cls.error(f"no {cls.kind}: {describe_validation_error(error)}") from None
