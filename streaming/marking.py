"""Users made due who should have interests and have none; one of them does not stop the others."""

from __future__ import annotations

from collections.abc import Sequence

from infra.errors import RecordTooLarge, StoreCorrupt, StoreError, typed_line
from infra.metrics import WorkerMetrics
from infra.store import Store
from infra.telemetry import get_logger

log = get_logger(__name__)


def make_due(
    store: Store,
    owner: int,
    digest: bytes,
    users: Sequence[str],
    now_ms: int,
    metrics: WorkerMetrics,
) -> int:
    """`infra.store.Store.mark_due`, and how many were marked. Whose record the store refuses, since
    a later version wrote it, is passed over, counted as not reclustered, and told of in the log.

    Raises:
        StoreUnavailable, StoreFull: the store failed; some may be marked.
    """
    refused: list[StoreError] = []

    def mark(some: Sequence[str]) -> int:
        try:
            return store.mark_due(owner, digest, some, now_ms)
        except (StoreCorrupt, RecordTooLarge) as error:
            if len(some) == 1:
                refused.append(error)
                return 0
        half = len(some) // 2  # find whose
        return mark(some[:half]) + mark(some[half:])

    marked = mark(users)
    if refused:
        metrics.reclusters.labels("failed").inc(len(refused))
        log.warning(
            "user not reclustered", error=typed_line(refused[0]), and_others=len(refused) - 1
        )
    return marked
