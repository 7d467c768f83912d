"""A run's progress for people: a bar in a terminal or notebook, elsewhere a line every ten seconds."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.console import Console

    from airflow_provider_gradient.completions.progress import Progress

_LINE_SECONDS = 10.0


class ProgressBar:
    """Shows the progress that it is called with; a context manager.

    ::

        with ProgressBar() as bar:
            await complete_dataset(client, ..., on_progress=bar, progress_seconds=0.5)

    :param console: where to; ``None`` for standard error.
    """

    def __init__(self, console: Console | None = None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self._console = console or Console(stderr=True)
        self._told = 0.0
        self._bar = Bar(
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:.1f} rows/s, {task.fields[in_flight]} in flight"),
            TextColumn("{task.fields[errors]} errors, {task.fields[tokens]} tokens"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not (self._console.is_terminal or self._console.is_jupyter),
        )
        self._task = self._bar.add_task("", total=None, rate=0.0, in_flight=0, errors=0, tokens="?")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def __call__(self, progress: Progress) -> None:
        """Show ``progress``."""
        if self._bar.disable:
            self._tell(progress)
            return
        tokens = progress.prompt_tokens
        self._bar.update(
            self._task,
            total=progress.rows,
            completed=progress.done,
            rate=progress.rows_per_second,
            in_flight=progress.in_flight,
            errors=progress.counts.error,
            tokens="?" if tokens is None else tokens + (progress.completion_tokens or 0),
        )

    def _tell(self, progress: Progress) -> None:
        if progress.seconds - self._told >= _LINE_SECONDS or progress.done == progress.rows:
            self._told = progress.seconds
            self._console.print(progress.describe(), markup=False, highlight=False, soft_wrap=True)
