"""Whether the servers of a soak are what it takes them for."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from infra.behaviors import Source, pack_behavior
from infra.errors import StoreUnavailable
from infra.settings import StoreSettings
from infra.store import Append, Group, Store
from infra.stores import open_store
from tests.soak.asking import NOW_MS
from tests.soak.places import PLACES, ServerPlace

READ_S = 10.0
"""On a busy machine."""


def fill(store: Store) -> None:
    append = Append("u", [pack_behavior(1, NOW_MS, 0, 0, 2)], [0], [0])
    store.append([Group(Source(key=1, owner=1), [append])], NOW_MS)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["aerospike", "redis"])
def test_a_server_that_hangs_answers_nobody_and_one_that_is_killed_comes_back_with_all_it_had(
    kind: str, tmp_path: Path
) -> None:
    """Slow: a server is started three times."""
    place = PLACES[kind](tmp_path)
    assert isinstance(place, ServerPlace)
    with closing(place):
        place.open(tmp_path, fill)
        settings = StoreSettings(url=place.url)
        with closing(open_store(settings, read_only=True, timeout_s=0.2)) as hasty:
            place.hang()
            with pytest.raises(StoreUnavailable):
                hasty.sequences(["u"])
        place.kill()
        place.start()
        with closing(open_store(settings, read_only=True, timeout_s=READ_S)) as store:
            (sequence,) = store.sequences(["u"])
    assert sequence is not None
    assert len(sequence.behaviors) == 1
