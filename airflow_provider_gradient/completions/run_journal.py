"""What the journals of completions and of embeddings share: a head that names the run, and a line for each
piece of work that is done, entered again by the run that resumes."""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, ClassVar, Self

from airflow_provider_gradient.completions.threads import in_thread
from airflow_provider_gradient.datasets import AppendLog, JournalError, StoredPath, beside, dump_row

log = logging.getLogger(__name__)

_NONE = -1


@dataclass(frozen=True, kw_only=True)
class JournalHeader:
    """Which run a journal belongs to."""

    identity: str | None
    fingerprint: str
    rows: int


class RunJournal(ABC):
    """Where what is done of each row stands in the journal, of which eight bytes a row are in memory; a
    context manager that makes all of it safe when it ends.

    :param output: path of the output that the journal stands beside, as ``<output>.journal.jsonl``.
    :param header: the run; what another has left is dropped, and that is logged.
    :param is_stopped: asked while the journal is read, which takes seconds for a million rows.
    :cvar kind: of journal, in its first line.
    :cvar schema_version: likewise.
    :cvar determined_by: what the fingerprint is taken over, in words.
    :ivar done: rows that are done.
    :ivar resumed: those that were when it was opened.
    :raises JournalError: it can't be read as a journal of this kind.
    :raises InterruptedError: it was stopped meanwhile.
    :raises DatasetError: it can't be opened.
    """

    kind: ClassVar[str]
    schema_version: ClassVar[int]
    determined_by: ClassVar[str]

    def __init__(
        self, output: StoredPath, header: JournalHeader, *, is_stopped: Callable[[], bool] = lambda: False
    ) -> None:
        self.done = 0
        self._header = header
        self._is_stopped = is_stopped
        self._offsets = array("q", [_NONE]) * header.rows
        self._log = AppendLog(beside(output, ".journal.jsonl"))
        try:
            if not self._load():
                self._log.clear()
                self._log.append(self.first_line(header))
                self._log.commit()
        except BaseException as error:
            self._log.__exit__(type(error), error, error.__traceback__)
            raise
        self.resumed = self.done

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._log.__exit__(kind, error, trace)

    def __contains__(self, index: int) -> bool:
        return index < len(self._offsets) and self._offsets[index] != _NONE

    @classmethod
    async def opened(cls, output: StoredPath, header: JournalHeader) -> Self:
        """The journal, read in a thread; a cancellation ends that."""
        stopped = threading.Event()
        return await in_thread(lambda: cls(output, header, is_stopped=stopped.is_set), stop=stopped.set)

    @classmethod
    def first_line(cls, header: JournalHeader) -> bytes:
        """The head, as it stands in the file."""
        return dump_row({"journal": cls.kind, "schema_version": cls.schema_version} | asdict(header))

    @classmethod
    def remove_leftover(cls, output: StoredPath, header: JournalHeader) -> None:
        """Delete the journal of a run that finished and was killed before it could do so itself."""
        path = beside(output, ".journal.jsonl")
        if path.exists():
            with AppendLog(path) as journal:
                if next((line for _, line in journal.lines()), b"") == cls.first_line(header):
                    journal.remove()

    def commit(self) -> None:
        """Make safe what was written so far; may be called from another thread than what writes."""
        self._log.commit()

    def remove(self) -> None:
        """Delete the journal: what it holds stands in the finished output."""
        self._log.remove()

    @abstractmethod
    def _parse(self, line: bytes) -> Mapping[str, Any] | None:
        """The fields of a line, as far as they count; ``None`` if it is no JSON object."""

    @abstractmethod
    def _enter_line(self, fields: Mapping[str, Any], number: int, offset: int) -> None:
        """Enter what a line that was read says."""

    def _load(self) -> bool:
        """Enter what is there; whether there is a journal of this run at all."""
        for number, (offset, line) in enumerate(self._log.lines(), 1):
            if self._is_stopped():
                raise InterruptedError(f"{self._log} was not read to its end")
            fields = self._parse(line)
            if fields is None:
                raise self._broken(number, "is no JSON object")
            if number > 1:
                self._enter_line(fields, number, offset)
            elif not self._is_ours(fields):
                return False
        return self._log.size > 0

    def _is_ours(self, fields: Mapping[str, Any]) -> bool:
        if fields.get("journal") != self.kind or fields.get("schema_version") != self.schema_version:
            raise self._broken(
                1, f"is not the head of a journal of {self.kind} of schema version {self.schema_version}"
            )
        if fields.get("identity") != self._header.identity:
            changed = "is another piece of work's"
        elif fields.get("fingerprint") != self._header.fingerprint:
            changed = f"was written for another {self.determined_by}"
        else:
            return True
        log.warning("%s %s: its rows are dropped, the run starts anew", self._log, changed)
        return False

    def _broken(self, number: int | None, what: str) -> JournalError:
        where = str(self._log) if number is None else f"{self._log}, line {number}"
        return JournalError(
            f"{where} {what}: the journal was damaged or is another's. Restore it, or delete it to start "
            "anew; the rows it holds are then sent and paid for again"
        )
