"""What goes on beside the requests of a run: its journal is made safe, and its progress told."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from airflow_provider_gradient.completions.progress import Progress, ProgressFile
from airflow_provider_gradient.completions.threads import in_thread
from airflow_provider_gradient.datasets import StoredPath, local_path

_COMMIT_SECONDS = 0.5
"""Between two moments at which a local journal is made safe against a power cut."""
_PART_SECONDS = 2.0
"""Between two parts of a journal that is elsewhere: what a lost machine loses at most."""


class Committed(Protocol):
    """A journal."""

    def commit(self) -> None:
        """Make safe what was written so far; called in a thread."""


@dataclass(frozen=True, kw_only=True)
class Keeper:
    """Makes a journal safe and tells the progress, every few seconds.

    :ivar output: that the journal stands beside.
    :ivar progress_file: where the progress is kept.
    :ivar on_progress: is told of it besides, every ``progress_seconds`` and at the end.
    """

    output: StoredPath
    journal: Committed
    progress_file: ProgressFile
    on_progress: Callable[[Progress], None] | None
    progress_seconds: float

    async def keep(self, progress: Callable[[], Progress]) -> None:
        """Go on until cancelled.

        :param progress: gives the present one.
        """
        reported = time.monotonic()
        while True:
            await asyncio.sleep(_COMMIT_SECONDS if local_path(self.output) else _PART_SECONDS)
            await in_thread(self.journal.commit)
            if self.progress_file.is_due:
                await in_thread(functools.partial(self.progress_file.write, progress()))
            if time.monotonic() - reported >= self.progress_seconds:
                reported = time.monotonic()
                self.report(progress())

    def report(self, progress: Progress) -> None:
        """Tell of the progress now."""
        if self.on_progress:
            self.on_progress(progress)
