"""A scorer whose store is a server some milliseconds away.

``python -m lifelong.bench.slow_store STORE BUNDLE PORT MILLISECONDS`` serves as ``lifelong scorer``
does, but each read sleeps so long in the thread that reads, as one does that waits for a network.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import uvicorn

from extractor.systems import open_system
from infra.metrics import ScorerMetrics, new_registry
from infra.settings import ScorerSettings
from infra.store import Profile, Store, StoredSequence, StoreOptions
from infra.stores.lmdb import LmdbStore
from models.bundle import Bundle
from scorer.http.app import create_app
from scorer.ranking import Ranker
from scorer.readiness import Readiness
from scorer.service import Service


class SlowStore:
    """The reads of a store, each after a while."""

    local = False

    def __init__(self, store: Store, seconds: float) -> None:
        self._store = store
        self._seconds = seconds

    def profiles(self, users: Sequence[str], digest: bytes) -> list[Profile | None]:
        """As the store's."""
        time.sleep(self._seconds)
        return self._store.profiles(users, digest)

    def sequences(self, users: Sequence[str]) -> list[StoredSequence | None]:
        """As the store's."""
        time.sleep(self._seconds)
        return self._store.sequences(users)


def main(store: str, path: str, port: str, milliseconds: str) -> None:
    """Serve until told to stop."""
    registry = new_registry()
    metrics = ScorerMetrics(registry)
    bundle = Bundle.load(Path(path))
    lmdb: Store = LmdbStore(Path(store), StoreOptions(read_only=True))
    if float(milliseconds):
        lmdb = cast(Store, SlowStore(lmdb, float(milliseconds) / 1000))
    service = Service(Readiness(metrics))
    service.serve(Ranker(lmdb, bundle, open_system(bundle), metrics), lambda: None)
    app = create_app(service, ScorerSettings(), metrics, registry)
    uvicorn.run(app, port=int(port), loop="uvloop", http="httptools", log_level="error")


if __name__ == "__main__":
    main(*sys.argv[1:])
