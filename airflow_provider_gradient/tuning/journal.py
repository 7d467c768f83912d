"""The journal of a tuning run: what was sent, and what came of it.

A call is written down as *sent*, and safe on disk, before it is sent, and settled after: *acknowledged* with
its result, *refused* where the server surely has not carried it out, *skipped* by the user's choice. So at
most one call is ever sent and not settled, and only of that one it is unknown whether it was trained. Between
two calls stands how an epoch was *validated*. Every line has a checksum; a journal of version 1, which had
none, is read and written anew with them.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import secrets
from types import TracebackType
from typing import Any, Self

from airflow_provider_gradient.datasets import AppendLog, JournalError, PathLike, dump_row, sealed, unsealed
from airflow_provider_gradient.tuning.plan import PlannedCall
from airflow_provider_gradient.tuning.report import CallResult, EpochScore

log = logging.getLogger(__name__)

_VERSION = 2


class TuningJournal:
    """What is settled of a run; a context manager.

    :param path: where it is kept; ``None`` for memory alone.
    :param identity: names the piece of work; ``None`` lets each journal be a work of its own.
    :param fingerprint: of adapter, samples and plan.
    :ivar settled: calls from the first on of which all is known.
    :ivar scores: of the epochs that were validated, one after another.
    :ivar pending: whether the call after those was sent.
    :ivar keys_honoured: whether the server was seen to honour idempotency keys.
    :raises JournalError: the journal can't be read as one.
    :raises DatasetError: it can't be opened.
    """

    def __init__(self, path: PathLike | None, *, identity: str | None, fingerprint: str) -> None:
        self.results: list[CallResult] = []
        self.skipped: list[int] = []
        self.scores: list[EpochScore] = []
        self.settled = 0
        self.pending = False
        self.keys_honoured = False
        self._identity = identity
        self.fingerprint = fingerprint
        self._run = secrets.token_hex(16)
        self._log = AppendLog(path) if path is not None else None
        try:
            if self._log is not None and not self._load(self._log):
                self._log.clear()
                self._write(self._header())
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise
        self.resumed = self.settled

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._log is not None:
            self._log.__exit__(kind, error, trace)

    def key(self, call: PlannedCall) -> str:
        """The call's idempotency key: the same at every try of this piece of work, and no other's."""
        work = self._identity if self._identity is not None else self._run
        return hashlib.sha256(f"{work}\n{self.fingerprint}\n{call.number}".encode()).hexdigest()

    def sent(self, call: PlannedCall) -> None:
        """The call is about to be sent."""
        self._settle({"event": "sent", "call": call.number})

    def acknowledged(self, result: CallResult, *, keys_honoured: bool) -> None:
        """The call was carried out."""
        event = {"event": "acknowledged"} | result.model_dump(mode="json")
        self._settle(event | {"keys_honoured": keys_honoured})

    def refused(self, call: PlannedCall) -> None:
        """The call was surely not carried out."""
        self._settle({"event": "refused", "call": call.number})

    def skip(self, call: PlannedCall) -> None:
        """Nobody knows whether the call was carried out, and nobody will ask again."""
        self._settle({"event": "skipped", "call": call.number})

    def validated(self, score: EpochScore) -> None:
        """The adapter was asked after an epoch."""
        self._settle({"event": "validated"} | score.model_dump(mode="json"))

    def _settle(self, event: dict[str, Any]) -> None:
        self._write(event)
        self._apply(event)

    def _write(self, event: dict[str, Any]) -> None:
        if self._log is not None:
            self._log.append(sealed(dump_row(event)))
            self._log.commit()

    def _apply(self, event: dict[str, Any]) -> None:
        """Take an event; raises ``ValueError`` or ``KeyError`` where it can't follow those before."""
        kind = event["event"]
        if kind == "validated":
            if self.pending or event["epoch"] != len(self.scores):
                raise ValueError
            self.scores.append(EpochScore.model_validate(event))
            return
        if event["call"] != self.settled or not (self.pending or kind == "sent"):
            raise ValueError
        self.pending = kind == "sent"
        if kind == "acknowledged":
            self.results.append(CallResult.model_validate(event))
            self.keys_honoured = bool(event["keys_honoured"])
        elif kind == "skipped":
            self.skipped.append(event["call"])
        elif kind not in ("sent", "refused"):
            raise ValueError
        self.settled += kind in ("acknowledged", "skipped")

    def _header(self) -> dict[str, Any]:
        return {
            "journal": "tuning",
            "schema_version": _VERSION,
            "identity": self._identity,
            "fingerprint": self.fingerprint,
            "run": self._run,
        }

    def _load(self, lines: AppendLog) -> bool:
        """Take the events that are there; whether there is a journal of this run at all."""
        version = None
        for number, (_, line) in enumerate(lines.lines(), 1):
            try:
                if number == 1:
                    version = 1 if b'"crc32"' not in line else _VERSION
                event = json.loads(unsealed(line) if version == _VERSION else line)
                if number == 1 and event["schema_version"] != version:
                    raise ValueError
                if number > 1:
                    self._apply(event)
                elif not self._is_ours(event):
                    return False
            except (ValueError, KeyError, TypeError, AttributeError):
                raise JournalError(
                    f"{lines}, line {number} is not what a tuning journal has there: it was damaged or is "
                    "another's. Restore it; to start anew, delete it and make a new adapter, since this one "
                    "may have been trained by the calls that the journal held"
                ) from None
        if version == 1:
            events = (line for number, (_, line) in enumerate(lines.lines()) if number)
            lines.rewrite(map(sealed, itertools.chain([dump_row(self._header())], events)))
        return lines.size > 0

    def _is_ours(self, header: dict[str, Any]) -> bool:
        if header["journal"] != "tuning":
            raise ValueError
        if (header["identity"], header["fingerprint"]) == (self._identity, self.fingerprint):
            self._run = header["run"]
            return True
        log.warning(
            "%s was written for another piece of work, adapter, samples or plan; the run starts anew, on the "
            "adapter as it is",
            self._log,
        )
        return False
