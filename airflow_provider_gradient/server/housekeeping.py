"""What a running server throws away: files that no record speaks of, and answers too old to be asked for.

A kill leaves nothing for long: the start sweeps everything, and later rounds what is older than any write
under way can be.
"""

from __future__ import annotations

import logging
import threading
from datetime import timedelta

from airflow_provider_gradient.server.store import Store
from airflow_provider_gradient.server.weights import AdapterWeights

_LOG = logging.getLogger(__name__)
_EVERY_SECONDS = 600.0
_LEFTOVER_SECONDS = 3600.0
"""How long what isn't on record is left alone: longer than writing a version takes."""
ANSWERS_KEPT_FOR = timedelta(days=30)
ANSWERS_KEPT = 100_000
"""For how long, and how many of, the answers to calls with an ``Idempotency-Key`` are remembered."""


class Housekeeping:
    """Tidies at the start and then every ten minutes, on a thread of its own."""

    def __init__(self, store: Store, weights: AdapterWeights) -> None:
        self._store = store
        self._weights = weights
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._rounds, name="gradient-housekeeping", daemon=True)

    def start(self) -> None:
        """Remove all leftovers, none of which can be in use yet, and go on tidying from time to time."""
        self.tidy(older_than=0.0)
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()
        self._thread.join()

    def tidy(self, *, older_than: float = _LEFTOVER_SECONDS) -> None:
        """One round.

        :param older_than: seconds; files that changed later stay.
        """
        removed = self._weights.sweep(self._store.versions(), older_than=older_than)
        forgotten = self._store.forget_answers(older_than=ANSWERS_KEPT_FOR, keep=ANSWERS_KEPT)
        if removed or forgotten:
            _LOG.info("tidied up: %d leftovers of adapters, %d old answers", removed, forgotten)

    def _rounds(self) -> None:
        while not self._stopping.wait(_EVERY_SECONDS):
            try:
                self.tidy()
            except Exception:
                _LOG.exception("tidying up failed")
