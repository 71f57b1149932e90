from __future__ import annotations

from pathlib import Path

import pytest

from extractor.systems import open_system
from infra.behaviors import DEFAULT_ACTIONS, Source, item_key, pack_behavior
from infra.errors import SettingsError, StoreCorrupt, StoreUnavailable
from infra.segments import SEGMENT
from infra.settings import BundleSettings, Settings, StoreSettings
from infra.store import Append, Group, InterestWrite, Store
from infra.stores import open_store
from lifelong.inspection import run_inspect
from models.bundle import Bundle
from tests.bundles import tiny_bundle

NOW_MS = 1_700_000_000_000
WAITING = 3
OTHER = b"another bundle's"


@pytest.fixture(scope="module", params=["encode", "sdim"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("bundle") / "tiny"
    return Bundle.load(tiny_bundle(path, system=request.param))


@pytest.fixture
def settings(bundle: Bundle, tmp_path: Path) -> Settings:
    """A bundle, and an LMDB store that nobody has made."""
    return Settings(
        store=StoreSettings(url=f"lmdb://{tmp_path / 'store'}"),
        bundle=BundleSettings(path=bundle.path),
    )


@pytest.fixture
def filled(settings: Settings) -> Settings:
    """The same, and "ann" in the store with a segment and three behaviors more."""
    store = open_store(settings.store)
    number = SEGMENT + WAITING
    packed = [
        pack_behavior(
            item_key(f"item-{1 + n % 9}"), NOW_MS + n, 0, 0, DEFAULT_ACTIONS.codes["click"]
        )
        for n in range(number)
    ]
    append = Append("ann", packed, [0] * number, list(range(number)))
    store.append([Group(Source(1, 1), [append])], NOW_MS)
    store.close()
    return settings


def write(store: Store, digest: bytes, record: bytes) -> None:
    """Store interests of "ann" that cover the segment."""
    (sequence,) = store.sequences(["ann"])
    assert sequence is not None
    version = type(sequence.version)(sequence.version.epoch, SEGMENT)
    store.put_interests([InterestWrite("ann", digest, version, record)], NOW_MS)


def cluster(settings: Settings, bundle: Bundle) -> None:
    """Store what the bundle makes of "ann", as a worker would."""
    system = open_system(bundle)
    store = open_store(settings.store)
    (sequence,) = store.sequences(["ann"])
    assert sequence is not None
    write(store, bundle.digest, system.layout.encode(system.extract(sequence)))
    store.close()


def test_a_user_is_described(filled: Settings) -> None:
    report = run_inspect(filled, "ann", 2, quiet=True)

    assert (report["user"], report["events"], report["kept"]) == ("ann", 67, 67)
    assert report["unsealed"] == WAITING
    assert [one["item"] for one in report["newest"]] == ["Item 4", "Item 3"]
    assert report["interests"] is None


def test_the_interests_of_the_bundle_are_described(filled: Settings, bundle: Bundle) -> None:
    cluster(filled, bundle)

    interests = run_inspect(filled, "ann", 2, quiet=True)["interests"]

    assert interests["bundle"] == bundle.digest.hex()
    assert interests["clusters" if bundle.manifest.system == "encode" else "filled"] > 0
    assert sum(one["share"] for one in interests["largest"]) == pytest.approx(1, abs=0.01)


def test_without_a_state_the_behaviors_themselves_are_described(
    filled: Settings, tmp_path: Path
) -> None:
    bundle = Bundle.load(tiny_bundle(tmp_path / "twin", system="twin"))
    settings = Settings(store=filled.store, bundle=BundleSettings(path=bundle.path))

    interests = run_inspect(settings, "ann", 2, quiet=True)["interests"]

    assert (interests["covers"], interests["waiting"], interests["items"]) == (67, 0, 9)
    # The last 64 of 67 behaviors on nine items in turns.
    assert interests["largest"][0] == {"share": 0.125, "typical": ["Item 4"]}


def test_biases_are_told_by_the_names_of_actions(filled: Settings, tmp_path: Path) -> None:
    path = tiny_bundle(tmp_path / "twin", system="twin", actions=("view", "like"))
    settings = Settings(store=filled.store, bundle=BundleSettings(path=path))

    biases = run_inspect(settings, None, 2, quiet=True)["bundle"]["biases"]

    assert {action: len(of_heads) for action, of_heads in biases.items()} == {
        "unknown": 2,
        "view": 2,
        "like": 2,
    }


def test_biases_of_times_are_told_by_what_they_span(filled: Settings, tmp_path: Path) -> None:
    path = tiny_bundle(tmp_path / "twin", system="twin", behavior=("age", "dwell"))
    settings = Settings(store=filled.store, bundle=BundleSettings(path=path))

    bundle = run_inspect(settings, None, 2, quiet=True)["bundle"]

    assert list(bundle["dwell_biases"])[:3] == ["none", "below 2 s", "below 4 s"]
    assert list(bundle["dwell_biases"])[-2:] == ["below 16384 s", "16384 s and more"]
    assert (len(bundle["dwell_biases"]), len(bundle["age_biases"])) == (16, 24)


def test_interests_of_another_bundle_are_not_shown(filled: Settings) -> None:
    store = open_store(filled.store)
    write(store, OTHER, b"of another layout")
    store.close()

    assert run_inspect(filled, "ann", 2, quiet=True)["interests"] is None


def test_interests_of_another_bundle_do_not_hide_those_of_this_one(
    filled: Settings, bundle: Bundle
) -> None:
    cluster(filled, bundle)
    store = open_store(filled.store)
    write(store, OTHER, b"of another layout")
    store.close()

    interests = run_inspect(filled, "ann", 2, quiet=True)["interests"]

    assert interests["bundle"] == bundle.digest.hex()


def test_damaged_interests_are_told_with_the_users_name(filled: Settings, bundle: Bundle) -> None:
    store = open_store(filled.store)
    write(store, bundle.digest, b"what a disk made of it")
    store.close()

    with pytest.raises(StoreCorrupt, match="'ann'"):
        run_inspect(filled, "ann", 2, quiet=True)


def test_without_a_user_the_first_ones_are_listed(filled: Settings) -> None:
    assert run_inspect(filled, None, 2, quiet=True)["users"] == ["ann"]


def test_an_unknown_user_is_told(filled: Settings) -> None:
    with pytest.raises(SettingsError, match="'nobody'"):
        run_inspect(filled, "nobody", 2, quiet=True)


@pytest.mark.parametrize("user", [None, "ann"])
def test_a_store_that_is_not_there_is_told_and_not_made(
    settings: Settings, user: str | None, tmp_path: Path
) -> None:
    with pytest.raises(StoreUnavailable, match="there is no store"):
        run_inspect(settings, user, 2, quiet=True)

    assert list(tmp_path.iterdir()) == []


def test_looking_changes_nothing(filled: Settings, tmp_path: Path) -> None:
    data = tmp_path / "store" / "data.mdb"
    before = data.read_bytes()

    run_inspect(filled, "ann", 2, quiet=True)

    assert data.read_bytes() == before
