"""What the journals of completions and of embeddings share.

The first line, the head, names the run. Then come the rows' keys, and then a line for each piece of work that
is done, which the run that resumes enters again. Every line has a checksum. A run over another dataset takes
the answers of the rows that it has as well, known by their keys: the journal is then written anew for it, and
appears in the place of the old one whole. A journal of version 1, without keys and checksums, is written anew
too; it serves the dataset that it was written for.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import re
import threading
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, ClassVar, Self

from airflow_provider_gradient.completions.row_keys import NO_ROW, RowKeys
from airflow_provider_gradient.completions.siblings import refuse_sibling
from airflow_provider_gradient.completions.threads import in_thread
from airflow_provider_gradient.datasets import (
    AppendLog,
    JournalError,
    StoredPath,
    beside,
    dump_row,
    sealed,
    unsealed,
)

log = logging.getLogger(__name__)

VERSION = 2
_KEYS = re.compile(rb'\{"keys_from":(\d+),"rows":(\d+),"keys":"')
_NONE = -1

Id = int | str | None


@dataclass(frozen=True, kw_only=True)
class JournalHeader:
    """Which run a journal belongs to.

    :ivar identity: the piece of work.
    :ivar fingerprint: SHA-256 over all that determines requests and output.
    :ivar request: SHA-256 over what determines all requests alike: all but the rows' own keys.
    """

    identity: str | None
    fingerprint: str
    rows: int
    request: str = ""


class RunJournal(ABC):
    """Where what is done of each row stands in the journal, of which eight bytes a row are in memory; a
    context manager that makes all of it safe when it ends.

    :param output: path of the output that the journal stands beside, as ``<output>.journal.jsonl``.
    :param header: the run; what another has left is dropped, and that is logged.
    :param keys: of the run's rows; ``None`` keeps none, and the journal serves this dataset alone.
    :param ids: gives the ids of the run's rows, in their order; asked where answers move to other rows.
    :param is_stopped: asked while the journal is read, which takes seconds for a million rows.
    :cvar kind: of journal, in its first line.
    :cvar determined_by: what ``request`` is taken over, in words.
    :ivar done: rows that are done.
    :ivar resumed: those that were when it was opened.
    :raises JournalError: it can't be read as a journal of this kind.
    :raises InterruptedError: it was stopped meanwhile.
    :raises DatasetError: it can't be opened, or is that of another task of the same DAG run.
    """

    kind: ClassVar[str]
    determined_by: ClassVar[str]

    def __init__(
        self,
        output: StoredPath,
        header: JournalHeader,
        *,
        keys: RowKeys | None = None,
        ids: Callable[[], Iterable[Id]] = lambda: itertools.repeat(None),
        is_stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self._header = header
        self._output = output
        self._is_stopped = is_stopped
        self._has_checksums = True
        self._log = AppendLog(beside(output, ".journal.jsonl"))
        try:
            self._open(keys, ids)
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
    async def opened(
        cls,
        output: StoredPath,
        header: JournalHeader,
        *,
        keys: RowKeys | None = None,
        ids: Callable[[], Iterable[Id]] = lambda: itertools.repeat(None),
    ) -> Self:
        """The journal, read in a thread; a cancellation ends that."""
        stopped = threading.Event()
        return await in_thread(
            lambda: cls(output, header, keys=keys, ids=ids, is_stopped=stopped.is_set), stop=stopped.set
        )

    @classmethod
    def first_line(cls, header: JournalHeader) -> bytes:
        """The head, as it stands in the file."""
        return sealed(dump_row({"journal": cls.kind, "schema_version": VERSION} | asdict(header)))

    @classmethod
    def remove_leftover(cls, output: StoredPath, header: JournalHeader) -> None:
        """Delete the journal of a run that finished and was killed before it could do so itself."""
        path = beside(output, ".journal.jsonl")
        if path.exists():
            with AppendLog(path) as journal, contextlib.suppress(ValueError):
                head = parse_line(next((line for _, line in journal.lines()), b""))
                if (head.get("identity"), head.get("fingerprint")) == (header.identity, header.fingerprint):
                    journal.remove()

    def commit(self) -> None:
        """Make safe what was written so far; may be called from another thread than what writes."""
        self._log.commit()

    def remove(self) -> None:
        """Delete the journal: what it holds stands in the finished output."""
        self._log.remove()

    @abstractmethod
    def _forget(self) -> None:
        """Begin anew, with no line entered."""

    @abstractmethod
    def _parse(self, line: bytes) -> Mapping[str, Any]:
        """The fields of a line, as far as they count.

        :raises ValueError: they are not those of a line of this kind; says so in words that follow its name.
        """

    @abstractmethod
    def _enter_line(self, fields: Mapping[str, Any], number: int, offset: int) -> None:
        """Enter what a line that was read says."""

    @abstractmethod
    def _candidates(self) -> Iterable[int]:
        """The rows of which there is anything to keep, those first that are done."""

    @abstractmethod
    def _moved(self, sources: array[int], ids: Iterable[Id]) -> Iterator[bytes]:
        """The lines that say of other rows what the lines entered say of theirs.

        :param sources: for each of the other rows the one whose answer is its, or ``NO_ROW``.
        :param ids: of the other rows.
        """

    def _open(self, keys: RowKeys | None, ids: Callable[[], Iterable[Id]]) -> None:
        version, found = self._head()
        if found is None or not self._serves(version, found):
            self._start(keys)
        elif version != VERSION or found != self._header:
            self._take(version, found, keys, ids)
        elif self._load(VERSION) < (0 if keys is None else len(keys)) and not self.done:
            self._start(keys)  # it was killed before all keys were there

    def _head(self) -> tuple[int, JournalHeader | None]:
        """The version of the journal that is there and whose it is."""
        line = next((line for _, line in self._log.lines()), None)
        if line is None:
            return VERSION, None
        try:
            fields = parse_line(line)
        except ValueError as error:
            raise self._broken(1, str(error)) from None
        version, own = fields.get("schema_version"), fields.get("journal") == self.kind
        if not own or version not in (1, VERSION) or ("crc32" in fields) != (version == VERSION):
            raise self._broken(1, f"is not the head of a journal of {self.kind} of schema version {VERSION}")
        if version == VERSION:
            self._verified(line, 1)
        try:
            return version, JournalHeader(
                identity=fields["identity"],
                fingerprint=fields["fingerprint"],
                rows=int(fields["rows"]),
                request=fields.get("request", ""),
            )
        except (KeyError, TypeError, ValueError):
            raise self._broken(1, "does not say which run the journal is of") from None

    def _serves(self, version: int, found: JournalHeader) -> bool:
        """Whether a journal may have answers of this run's rows; says so if it is dropped."""
        own = self._header
        if found.identity != own.identity:
            refuse_sibling(self._output, own.identity, owner=found.identity, has="the journal")
            changed = "is another piece of work's"
        elif version != VERSION and (found.fingerprint, found.rows) != (own.fingerprint, own.rows):
            changed = (
                "was written by an earlier version of this package, and for another dataset, model or text"
            )
        elif found.request != own.request and version == VERSION:
            changed = f"was written for another {self.determined_by}"
        else:
            return True
        self._say_dropped(changed)
        return False

    def _say_dropped(self, changed: str) -> None:
        log.warning("%s %s: its rows are dropped, the run starts anew", self._log, changed)

    def _start(self, keys: RowKeys | None) -> None:
        self._log.clear()
        for line in self._preface(keys):
            self._log.append(line)
        self._log.commit()
        self._reset(self._header.rows)

    def _take(
        self, version: int, found: JournalHeader, keys: RowKeys | None, ids: Callable[[], Iterable[Id]]
    ) -> None:
        """Write the journal of another dataset or version anew, for this run."""
        own, earlier = self._header, RowKeys()
        self._header = found
        self._load(version, earlier)
        before = self.done
        self._header = own
        if version == VERSION:
            sources = (keys or RowKeys()).matched(earlier, self._candidates())
        else:
            sources = array("q", [NO_ROW]) * own.rows
            for index in self._candidates():
                sources[index] = index

        def moved() -> Iterator[bytes]:
            for line in self._moved(sources, ids()):
                self._end_if_stopped()
                yield sealed(line)

        self._log.rewrite(itertools.chain(self._preface(keys), moved()))
        self._load(VERSION)
        if not self.done and before:
            self._say_dropped("has no answer to any request of this run's rows")
        elif version == VERSION:
            log.warning(
                "%s was written for another dataset: of %d rows, %d have their answers from it and %d are "
                "sent; %d answers of rows that are not there any more are dropped",
                *(self._log, own.rows, self.done, own.rows - self.done, before - self.done),
            )

    def _preface(self, keys: RowKeys | None) -> Iterator[bytes]:
        """The head and the keys."""
        yield self.first_line(self._header)
        first = 0
        for rows, text in () if keys is None else keys.dumped():
            yield sealed(b'{"keys_from":%d,"rows":%d,"keys":"%b"}\n' % (first, rows, text))
            first += rows

    def _reset(self, rows: int) -> None:
        self.done = 0
        self._offsets = array("q", [_NONE]) * rows
        self._forget()

    def _load(self, version: int, earlier: RowKeys | None = None) -> int:
        """Enter the lines behind the head; how many keys there were.

        :param earlier: takes the keys.
        """
        self._reset(self._header.rows)
        self._has_checksums = version == VERSION
        keys = 0
        for number, (offset, stored) in enumerate(self._log.lines(), 1):
            self._end_if_stopped()
            line = self._verified(stored, number)
            if number == 1:
                continue
            if self._has_checksums and (found := _KEYS.match(line)):
                if int(found[1]) != keys:
                    raise self._broken(number, "has the keys of other rows than those that follow")
                keys += int(found[2])
                if earlier is not None:
                    earlier.load(line[found.end() : -3])
                continue
            try:
                fields = self._parse(line)
            except ValueError as error:
                raise self._broken(number, str(error)) from None
            self._enter_line(fields, number, offset)
        return keys

    def _end_if_stopped(self) -> None:
        if self._is_stopped():
            raise InterruptedError(f"{self._log} was not read to its end")

    def _verified(self, line: bytes, number: int) -> bytes:
        if not self._has_checksums:
            return line
        try:
            return unsealed(line)
        except ValueError as error:
            raise self._broken(number, str(error)) from None

    def _stored(self, offset: int) -> bytes:
        """The line at ``offset``.

        :raises JournalError: it is not as it was written.
        """
        line = self._log.read(offset)
        if not self._has_checksums:
            return line
        try:
            return unsealed(line)
        except ValueError as error:
            raise self._broken(None, f"has a line at byte {offset} that {error}") from None

    def _broken(self, number: int | None, what: str) -> JournalError:
        where = str(self._log) if number is None else f"{self._log}, line {number}"
        return JournalError(
            f"{where} {what}: the journal was damaged or is another's. Restore it, or delete it to start "
            "anew; the rows it holds are then sent and paid for again"
        )


def parse_line(line: bytes) -> dict[str, Any]:
    """The JSON object in a line.

    :raises ValueError: there is none.
    """
    with contextlib.suppress(ValueError, RecursionError):
        fields = json.loads(line)
        if isinstance(fields, dict):
            return fields
    raise ValueError("is no JSON object")
