"""Names for adapters that can be moved from one to the next: ``alias:support-bot``.

A registry is a folder, on any file system: ``<workspace>/<alias>/00000007.json`` is the alias's seventh
promotion, and the file of the highest number says what it stands for now. A file is never changed. Two
promoters at once both try to create the next number, and only one can: that is all the locking there is, and
it holds across machines. A local file is made whole by a hard link; a bucket is asked to create and not to
overwrite, which S3 does in one step. File systems that can't are asked whether the file is there first.
"""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable, Container, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from airflow_provider_gradient.datasets import PathLike, StoredPath, as_path, create, path_error
from airflow_provider_gradient.registry.promotion import (
    Promotion,
    RegistryConflictError,
    RegistryError,
    UnknownAliasError,
    next_promotion,
    rollback,
)

ALIAS_PREFIX = "alias:"

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_FILE = re.compile(r"(\d{8})\.json")
_TRIES = 10
"""Promotions that may come in between before one gives up."""
_FIRST_WAIT, _LONGEST_WAIT = 0.01, 1.0
"""Seconds; after each of them one waits up to twice as long, so that all get their turn."""


def alias_of(model_id: str) -> str | None:
    """The alias that ``model_id`` names, or ``None`` where it is an id.

    :raises RegistryError: no alias can have this name.
    """
    if not model_id.startswith(ALIAS_PREFIX):
        return None
    return _checked(model_id.removeprefix(ALIAS_PREFIX))


class AliasRegistry:
    """The aliases of a workspace.

    :param path: folder; made when the first adapter is promoted.
    :param workspace_id: whose adapters they stand for.
    """

    def __init__(self, path: PathLike, *, workspace_id: str) -> None:
        self._root = as_path(path)
        self._folder = self._root / workspace_id

    def __str__(self) -> str:
        return str(self._folder)

    def resolve(self, model_id: str) -> str:
        """The id of the adapter that ``alias:<name>`` stands for; any other id as it is.

        :raises UnknownAliasError: nothing was promoted to the alias.
        """
        alias = alias_of(model_id)
        return model_id if alias is None else self.current(alias).model_id

    def aliases(self) -> list[str]:
        """Their names, in order."""
        names = (path.rpartition("/")[2] for path in _listed(self._folder))
        return sorted(name for name in names if _NAME.fullmatch(name))

    def current(self, alias: str) -> Promotion:
        """What ``alias`` stands for.

        :raises UnknownAliasError: nothing yet.
        """
        numbers = self._numbers(alias)
        if not numbers:
            known = ", ".join(self.aliases()) or "none"
            raise UnknownAliasError(
                f"no adapter was promoted to the alias {alias!r} in {self}; its aliases: {known}"
            )
        return self._read(alias, numbers[-1])

    def history(self, alias: str) -> list[Promotion]:
        """All promotions of ``alias``, oldest first.

        :raises UnknownAliasError: there is none.
        """
        self.current(alias)
        return [self._read(alias, number) for number in self._numbers(alias)]

    def promote(
        self,
        alias: str,
        model_id: str,
        *,
        model_version: str | None = None,
        promoted_by: str | None = None,
        reason: str | None = None,
        replaces: str | None = None,
        evaluation: Mapping[str, Any] | None = None,
        tuning: Mapping[str, Any] | None = None,
    ) -> Promotion:
        """Let ``alias`` stand for ``model_id``.

        The same ``promoted_by`` and ``model_id`` as the current promotion's are its repetition: it is given
        back, and nothing is written.

        :param alias: letters a-z, digits, ``.``, ``_`` and ``-``, 63 at most.
        :param model_version: when the adapter was last tuned.
        :param promoted_by: the piece of work or the person that does it.
        :param replaces: id of the adapter that it must stand for until now, ``""`` where it must stand for
            nothing: of several who promote first, one wins. ``None`` for whatever it is.
        :param evaluation: an evaluation report, as a dict.
        :param tuning: a tuning report, as a dict.
        :raises RegistryConflictError: the alias stands for another adapter than ``replaces``.
        :raises RegistryError: the name is no alias's, a report is another model's, the evaluation's gate did
            not pass, or the registry can't be written.
        """
        _checked(alias)

        def following(history: list[Promotion]) -> Promotion:
            current = history[-1] if history else None
            if current and promoted_by and (current.promoted_by, current.model_id) == (promoted_by, model_id):
                return current
            return next_promotion(
                alias,
                current,
                model_id=model_id,
                now=datetime.now(UTC),
                model_version=model_version,
                promoted_by=promoted_by,
                reason=reason,
                replaces=replaces,
                evaluation=evaluation,
                tuning=tuning,
            )

        return self._append(alias, following)

    def roll_back(
        self,
        alias: str,
        *,
        existing: Container[str],
        to_version: int | None = None,
        promoted_by: str | None = None,
        reason: str | None = None,
    ) -> Promotion:
        """Let ``alias`` stand for an earlier adapter again; that is a promotion of its own.

        :param existing: ids of the workspace's models: an adapter that was deleted can't come back.
        :param to_version: ``None`` for the last one with another adapter than the current.
        :param promoted_by: the same as the current promotion's, of a rollback, is its repetition: nothing
            is written.
        :raises UnknownAliasError: nothing was ever promoted to it.
        :raises RegistryError: there is no such version.
        """
        self.current(alias)

        def following(history: list[Promotion]) -> Promotion:
            current = history[-1]
            if promoted_by and current.rollback_to and current.promoted_by == promoted_by:
                return current
            return rollback(
                history,
                existing=existing,
                now=datetime.now(UTC),
                to_version=to_version,
                promoted_by=promoted_by,
                reason=reason,
            )

        return self._append(alias, following)

    def _append(self, alias: str, following: Callable[[list[Promotion]], Promotion]) -> Promotion:
        """Write what ``following`` makes of the history, unless that is its last promotion; again where
        another promoter was first, since it then makes something else of it."""
        for attempt in range(_TRIES):
            history = [self._read(alias, number) for number in self._numbers(alias)]
            promotion = following(history)
            if history and promotion == history[-1]:
                return promotion
            path = self._folder / alias / f"{promotion.version:08}.json"
            text = json.dumps(promotion.to_dict(), ensure_ascii=False, indent=2) + "\n"
            if create(path, text.encode()):
                return promotion
            time.sleep(random.uniform(0, min(_FIRST_WAIT * 2**attempt, _LONGEST_WAIT)))
        raise RegistryConflictError(f"alias {alias!r}: others promote to it all the time; try again")

    def _numbers(self, alias: str) -> list[int]:
        names = (path.rpartition("/")[2] for path in _listed(self._folder / _checked(alias)))
        return sorted(int(found[1]) for name in names if (found := _FILE.fullmatch(name)))

    def _read(self, alias: str, number: int) -> Promotion:
        path = self._folder / alias / f"{number:08}.json"
        try:
            with path.open("rb") as file:
                return Promotion.from_dict(json.loads(file.read()))
        except OSError as error:
            raise path_error(path, "read", error) from error
        except (RegistryError, ValueError, RecursionError) as error:
            raise RegistryError(f"{path}: {error}. Restore it; the alias can't be trusted without") from None


def _checked(alias: str) -> str:
    if not _NAME.fullmatch(alias):
        raise RegistryError(
            f"alias {alias!r}: 1 to 63 of a-z, 0-9, '.', '_' and '-', beginning with a letter or digit, are "
            "needed"
        )
    return alias


def _listed(folder: StoredPath) -> Iterator[str]:
    fs = folder.fs
    fs.invalidate_cache()
    try:
        yield from (path.rstrip("/") for path in fs.ls(folder.path, detail=False))
    except FileNotFoundError:
        return
    except OSError as error:
        raise path_error(folder, "read", error) from error
