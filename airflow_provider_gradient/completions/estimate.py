"""What a run over a dataset would be, without sending a row of it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from airflow_provider_gradient.api import InvalidRequestError
from airflow_provider_gradient.client import AsyncGradientClient
from airflow_provider_gradient.completions.duplicates import check_deterministic
from airflow_provider_gradient.completions.job import completion_parameters
from airflow_provider_gradient.completions.journal import Journal
from airflow_provider_gradient.completions.manifest import CompletionManifest
from airflow_provider_gradient.completions.output import finished_manifest
from airflow_provider_gradient.completions.preparation import PreparedRun, prepare
from airflow_provider_gradient.completions.threads import in_thread
from airflow_provider_gradient.datasets import (
    AppendLog,
    Dataset,
    JournalError,
    PathLike,
    StoredPath,
    TemplateFormat,
    as_path,
    beside,
    local_path,
    path_error,
    replacing,
)

if TYPE_CHECKING:
    from langchain_core.runnables import Runnable


class CompletionEstimate(BaseModel):
    """What a run would send.

    :ivar rows: of the dataset, all of them rendered and checked.
    :ivar done_rows: of those, the ones that an earlier run has done already, so that they are not sent.
    :ivar distinct_rows: rows with prompts of their own: what ``deduplicate`` would send. ``None``, like the
        other figures on prompts, where a runnable makes them.
    :ivar characters: of the prompts of all rows, without what the server's template adds.
    :ivar longest_prompt: characters.
    :ivar prompt_tokens: likewise, by the tokenizer that was given; ``None`` where none was.
    :ivar max_completion_tokens: the most that the completions of all rows may take, rows times
        ``max_generated_token_count``, of distinct rows with ``deduplicate``, and as often as
        ``max_output_retries`` lets a row be asked; ``None`` where the first is not set, or with a runnable.
    """

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    source: str
    model_id: str | None
    rows: int
    done_rows: int
    distinct_rows: int | None
    characters: int | None
    longest_prompt: int | None
    prompt_tokens: int | None
    max_completion_tokens: int | None

    def to_dict(self) -> dict[str, Any]:
        """The estimate as JSON has it."""
        return self.model_dump(mode="json")


async def estimate_completions(
    client: AsyncGradientClient,
    *,
    model_id: str | None = None,
    dataset: Dataset | None = None,
    output_path: PathLike,
    prompt_template: str | None = None,
    prompt_column: str | None = None,
    prompt_template_format: TemplateFormat = "f-string",
    runnable: Runnable[Any, Any] | str | None = None,
    output_schema: type[BaseModel] | Mapping[str, Any] | str | None = None,
    max_output_retries: int = 0,
    id_column: str | None = None,
    carry_columns: Sequence[str] | None = None,
    identity: str | None = None,
    only_failed_of: CompletionManifest | Mapping[str, Any] | PathLike | None = None,
    deduplicate: bool = False,
    tokenizer: PathLike | None = None,
    **parameters: Any,
) -> CompletionEstimate:
    """What :func:`~airflow_provider_gradient.completions.complete_dataset` would do with these arguments.

    Every row is rendered and checked as there. Nothing is written and no completion is asked for; the server
    is only asked when the adapter was last tuned, since that decides whether a journal still counts.

    :param tokenizer: path of the model's ``tokenizer.json``, or of the folder that has one; the API has no
        way to ask the server. Needs the ``tokenizers`` library.
    :param parameters: those of a completion, as ``complete_dataset`` has them.
    :raises DatasetError: a row or path is wrong.
    :raises InvalidRequestError: a parameter is out of range, or the tokenizer can't be read.
    :raises JournalError: an earlier run's journal or manifest can't be read.
    :raises ApiError: the server can't be asked.
    """
    given = completion_parameters(**parameters)
    if deduplicate:
        check_deterministic(given, runnable)
    sums = _PromptSums(None if tokenizer is None else await in_thread(lambda: token_counter(tokenizer)))
    run = await prepare(
        client,
        model_id=model_id,
        dataset=dataset,
        only_failed_of=only_failed_of,
        output_path=output_path,
        prompt_template=prompt_template,
        prompt_column=prompt_column,
        prompt_template_format=prompt_template_format,
        runnable=runnable,
        output_schema=output_schema,
        max_output_retries=max_output_retries,
        id_column=id_column,
        carry_columns=carry_columns,
        parameters=given,
        identity=identity,
        on_prompt=sums.add,
    )
    await run.aclose()
    rows = run.header.rows
    known = runnable is None
    leaders = await in_thread(run.keys.leaders)
    distinct = sum(index == leader for index, leader in enumerate(leaders)) if known else None
    each = given.get("max_generated_token_count") if known else None
    asked = rows if distinct is None or not deduplicate else distinct
    return CompletionEstimate(
        source=run.source,
        model_id=model_id,
        rows=rows,
        done_rows=await in_thread(lambda: rows_done(run)),
        distinct_rows=distinct,
        characters=sums.characters if known else None,
        longest_prompt=sums.longest if known else None,
        prompt_tokens=sums.tokens if known else None,
        max_completion_tokens=None if each is None else each * asked * (1 + max_output_retries),
    )


class _PromptSums:
    """Adds up prompts."""

    def __init__(self, count_tokens: Callable[[str], int] | None) -> None:
        self._count_tokens = count_tokens
        self.characters = self.longest = 0
        self.tokens = None if count_tokens is None else 0

    def add(self, prompt: str) -> None:
        self.characters += len(prompt)
        self.longest = max(self.longest, len(prompt))
        if self._count_tokens is not None and self.tokens is not None:
            self.tokens += self._count_tokens(prompt)


def token_counter(tokenizer: PathLike) -> Callable[[str], int]:
    """Counts the tokens of a text, special tokens included.

    :param tokenizer: a ``tokenizer.json``, or a folder that has one.
    :raises InvalidRequestError: it can't be read, or there is no library to read it.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise InvalidRequestError(
            "tokenizer: to count tokens, the library is needed: pip install tokenizers"
        ) from None
    path = as_path(tokenizer)
    try:
        if path.fs.isdir(path.path):
            path = path / "tokenizer.json"
        with path.open("rb") as file:
            loaded = Tokenizer.from_buffer(file.read())
    except OSError as error:
        raise InvalidRequestError(f"tokenizer: {path_error(path, 'read', error)}") from error
    except Exception as error:  # the library raises nothing narrower
        raise InvalidRequestError(f"tokenizer: {path} is no tokenizer.json: {error}") from error
    return lambda text: len(loaded.encode(text))


def rows_done(run: PreparedRun) -> int:
    """Rows that the run would find done. It is tried on a copy of the journal: that may be one of a run under
    way.

    :raises JournalError: journal or manifest can't be read.
    """
    if finished_manifest(CompletionManifest, run.output, run.header) is not None:
        return run.header.rows
    path = beside(run.output, ".journal.jsonl")
    if not path.exists():
        return 0
    with tempfile.TemporaryDirectory() as folder:
        output = as_path(folder) / run.output.name
        with replacing(beside(output, ".journal.jsonl")) as copy:
            copy.writelines(_journal_lines(path))
        try:
            with Journal(output, run.header, keys=run.keys, ids=run.job.ids) as journal:
                return journal.done
        except JournalError:
            raise JournalError(
                f"the journal beside {run.output} can't be read, and the run would say what to do"
            ) from None


def _journal_lines(path: StoredPath) -> Iterator[bytes]:
    local = local_path(path)
    if local is None:
        with AppendLog(path) as log:  # a copy, of parts that are whole
            yield from (line for _, line in log.lines())
    elif local.exists():
        with local.open("rb") as file:
            yield from (line for line in file if line.endswith(b"\n"))
