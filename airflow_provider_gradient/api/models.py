"""Requests and responses of the model operations of the Gradient API (list, create, get, delete, complete,
fine-tune).

On the wire names are camelCase and ``null`` means the same as an absent field; in Python they are snake_case.
Requests are checked strictly and refuse unknown fields, so that a misspelt one is an error and not a silent
default; responses ignore fields they don't know, so that a server may add some.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    ValidationError,
)
from pydantic.alias_generators import to_camel

from airflow_provider_gradient.api.errors import InvalidRequestError

MAX_GENERATED_TOKENS = 511
"""The most tokens one completion may ask for; the API wants a number below 512."""
MAX_RANK = 32
"""The highest LoRA rank an adapter may have."""
MAX_CHOICES = 10
MAX_CHOICE_LENGTH = 32
"""Choice guidance takes 1 to 10 values of 1 to 32 characters each."""
MAX_TOKENIZED_CHARACTERS = 1_000_000
"""The longest text of which a tokenize call of the server in this package gives the tokens."""

IDEMPOTENCY_KEY_HEADER = "Idempotency-Key"
"""Names a create or fine-tune call: an extra of the server in this package, which does a call with the same
key once and echoes the key. The hosted API knows none."""
KEYS_HEADER = "Gradient-Idempotency-Keys"
KEYS_HONOURED = "honoured"
"""What such a server says in this header when an adapter is read, so that a client need not guess."""

Capability = Literal["complete", "fineTune", "any"]
TokenCount = Annotated[int, Field(ge=0, lt=2**53)]
"""More digits than a float holds are no count but a server's mistake, and would break every sum."""
NonEmpty = Annotated[str, StringConstraints(min_length=1)]
Choice = Annotated[str, StringConstraints(min_length=1, max_length=MAX_CHOICE_LENGTH)]


class RequestModel(BaseModel):
    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="forbid", strict=True, frozen=True
    )

    def to_wire(self) -> dict[str, Any]:
        """The JSON body: camelCase, without the fields that are ``None``."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class ResponseModel(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)

    def to_wire(self) -> dict[str, Any]:
        """The JSON body: camelCase, without the fields that are ``None``."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


# --- list, create, get -------------------------------------------------------------------------------------


class BaseModelInfo(ResponseModel):
    """A base model: complete with it, or create adapters of it if ``capabilities`` has ``fineTune``.

    ``context_length``, the tokens it reads at once, is an extra of the server in this package."""

    type: Literal["baseModel"] = "baseModel"
    id: str
    name: str
    slug: str
    capabilities: list[Literal["complete", "fineTune"]]
    context_length: int | None = None


class ModelAdapterInfo(ResponseModel):
    """A model adapter: LoRA weights over a base model. ``latest_update_time`` is that of its last fine-tune
    (or of its creation), with a time zone."""

    type: Literal["modelAdapter"] = "modelAdapter"
    id: str
    name: str
    base_model_id: str
    latest_update_time: datetime


ModelInfo = Annotated[BaseModelInfo | ModelAdapterInfo, Field(discriminator="type")]


class ModelList(ResponseModel):
    models: list[ModelInfo]


class NewModel(RequestModel):
    base_model_id: NonEmpty
    name: NonEmpty


class LoraHyperparameters(RequestModel):
    rank: Annotated[int, Field(ge=1, le=MAX_RANK)] | None = None


class TrainingArguments(RequestModel):
    learning_rate: Annotated[float, Field(gt=0, lt=1)] | None = None


class InitialHyperparameters(RequestModel):
    lora_hyperparameters: LoraHyperparameters | None = None
    training_arguments: TrainingArguments | None = None


class CreateModelRequest(RequestModel):
    model: NewModel
    initial_hyperparameters: InitialHyperparameters | None = None


class CreatedModel(ResponseModel):
    id: str


# --- complete ----------------------------------------------------------------------------------------------


class ChoiceGuidance(RequestModel):
    """The completion is one of ``value``: whichever the model holds most likely."""

    type: Literal["choice"] = "choice"
    value: Annotated[list[Choice], Field(min_length=1, max_length=MAX_CHOICES)]


class Rag(RequestModel):
    collection_id: NonEmpty


class CompleteRequest(RequestModel):
    """One completion.

    ``auto_template`` absent means true: the server wraps the query in the base model's recommended template.
    ``top_p`` applies to what ``top_k`` leaves. ``seed`` is an extra of the server in this package, unknown to
    the hosted API: what is drawn with it is drawn again by the same call.
    """

    query: NonEmpty
    auto_template: bool | None = None
    max_generated_token_count: Annotated[int, Field(ge=1, le=MAX_GENERATED_TOKENS)] | None = None
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    top_k: Annotated[int, Field(ge=1)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    guidance: ChoiceGuidance | None = None
    rag: Rag | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None


class Usage(ResponseModel):
    """Token counts, an extra of the server in this package: the hosted API reports none."""

    prompt_tokens: TokenCount
    completion_tokens: TokenCount


class Completion(ResponseModel):
    finish_reason: str
    generated_output: str
    usage: Usage | None = None


# --- tokenize: an extra of the server in this package ------------------------------------------------------


class TokenizeRequest(RequestModel):
    """A text to tokenize. ``auto_template`` means what it means in a completion: absent is true."""

    query: Annotated[str, StringConstraints(min_length=1, max_length=MAX_TOKENIZED_CHARACTERS)]
    auto_template: bool | None = None


class TokenizeResult(ResponseModel):
    """The token ids that the model reads for a query, and how many it can read at once at most."""

    count: int
    tokens: list[int]
    context_length: int | None = None


# --- fine-tune ---------------------------------------------------------------------------------------------


class InputSegment(RequestModel):
    """A part of a sample's text; with ``trainable`` false it is context and adds nothing to the loss."""

    value: NonEmpty
    trainable: bool | None = None
    parse_special_tokens: bool | None = None


class FineTuningParameters(RequestModel):
    multiplier: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None


def _form_of_inputs(value: object) -> str:
    return "[text]" if isinstance(value, str) else "[segments]"


Inputs = Annotated[
    Annotated[NonEmpty, Tag("[text]")]
    | Annotated[list[InputSegment], Field(min_length=1), Tag("[segments]")],
    Discriminator(_form_of_inputs),
]


class Sample(RequestModel):
    """A text to learn: a plain string, wholly trainable, or segments in order."""

    inputs: Inputs
    fine_tuning_parameters: FineTuningParameters | None = None

    @property
    def segments(self) -> list[InputSegment]:
        """The inputs as segments; a plain string is one trainable segment."""
        return [InputSegment(value=self.inputs)] if isinstance(self.inputs, str) else self.inputs

    @property
    def is_trainable(self) -> bool:
        """Whether any segment adds to the loss."""
        return any(segment.trainable is not False for segment in self.segments)


class FineTuneRequest(RequestModel):
    samples: Annotated[list[Sample], Field(min_length=1)]


class FineTuneResult(ResponseModel):
    """``sum_loss`` is the negative log-likelihood over the trainable tokens before the update, in nats.

    ``model_version``, how often the adapter has been tuned, is an extra of the server in this package."""

    number_of_trainable_tokens: TokenCount
    sum_loss: float
    model_version: int | None = None

    @property
    def mean_loss(self) -> float:
        """``sum_loss`` a trainable token, in nats; 0 where there was none."""
        return self.sum_loss / self.number_of_trainable_tokens if self.number_of_trainable_tokens else 0.0


# --- checking ----------------------------------------------------------------------------------------------

RequestT = TypeVar("RequestT", bound=RequestModel)


def build_request(model: type[RequestT], /, **fields: Any) -> RequestT:
    """A checked request of ``fields``.

    :raises InvalidRequestError: names every field that is wrong, what it must be, and what it was.
    """
    try:
        return model(**fields)
    except ValidationError as error:
        raise InvalidRequestError(describe_validation_error(error)) from None


def describe_validation_error(error: ValidationError) -> str:
    """One line that names each wrong field by its path, such as ``samples[2].inputs: ...``."""
    lines: dict[str, None] = {}
    for detail in error.errors(include_url=False, include_context=False):
        given = detail["input"]
        shown = (
            "" if detail["type"] == "missing" or isinstance(given, dict | list) else f" (got {_short(given)})"
        )
        lines[f"{_field_path(detail['loc'])}: {detail['msg']}{shown}"] = None
    return "; ".join(lines)


def _field_path(location: tuple[int | str, ...]) -> str:
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif not part.startswith("["):  # a tag of a union's branch
            path += f".{part}" if path else part
    return path or "body"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
