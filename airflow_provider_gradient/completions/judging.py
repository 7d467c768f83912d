"""Whether an answer is one that can be used. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from airflow_provider_gradient.api import Completion
from airflow_provider_gradient.completions.chains import ChainOutput
from airflow_provider_gradient.completions.output_schema import OutputMismatchError, OutputSchema


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What becomes of an answer.

    :ivar parsed: the JSON value in it, where a schema asked for one.
    :ivar error: what is wrong with an ``invalid_output``.
    """

    status: Literal["success", "invalid_output"]
    parsed: Any = None
    error: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Judge:
    """What an answer has to be.

    :ivar choices: one of which a completion is; what a chain makes of a completion need not be.
    :ivar schema: that the answer has to match.
    """

    choices: Sequence[str] | None = None
    schema: OutputSchema | None = None

    def judge(self, answer: Completion | ChainOutput) -> Verdict:
        """What becomes of ``answer``."""
        text = answer.generated_output
        if isinstance(answer, ChainOutput):
            if answer.problem is not None or text is None:
                return _invalid(answer.problem or "the chain gave no output")
        elif self.choices is not None and answer.generated_output.strip() not in self.choices:
            return _invalid(f"none of the choices {list(self.choices)}")
        if self.schema is None:
            return _GOOD
        try:
            return Verdict(status="success", parsed=self.schema.parse(text or ""))
        except OutputMismatchError as error:
            return _invalid(str(error))


_GOOD = Verdict(status="success")


def _invalid(message: str) -> Verdict:
    return Verdict(
        status="invalid_output", error={"type": "invalidOutput", "message": message, "transient": False}
    )
