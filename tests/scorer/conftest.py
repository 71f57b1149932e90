"""A tiny bundle, a store with a user in it, and the application over them or settings for one."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette

from extractor.system import System
from extractor.systems import open_system
from infra.behaviors import DEFAULT_ACTIONS, Source, item_key, pack_behavior
from infra.errors import StoreUnavailable
from infra.metrics import ScorerMetrics
from infra.settings import BundleSettings, ScorerSettings, Settings, StoreSettings
from infra.store import Append, Group, InterestWrite, Profile, StoredSequence
from infra.stores import open_store
from infra.stores.memory import MemoryStore
from models.bundle import Bundle
from scorer.access import Access
from scorer.http.app import create_app
from scorer.keys import KeyFile
from scorer.process import StoreQuestion
from scorer.ranking import Ranker
from scorer.readiness import Readiness
from scorer.service import Service
from tests.bundles import tiny_bundle
from tests.scorer.running import free_port

NOW_MS = 1_700_000_000_000
SOURCE = Source(key=1, owner=1)


class FragileStore(MemoryStore):
    """A memory store that can go away and come back, and that counts its reads."""

    def __init__(self) -> None:
        super().__init__()
        self.away = False
        self.reads = 0

    def profiles(self, users: Sequence[str], digest: bytes) -> list[Profile | None]:
        self._check()
        return super().profiles(users, digest)

    def sequences(self, users: Sequence[str]) -> list[StoredSequence | None]:
        self._check()
        return super().sequences(users)

    def ping(self) -> None:
        self._check()

    def _check(self) -> None:
        self.reads += 1
        if self.away:
            raise StoreUnavailable("the store at 127.0.0.1:1 cannot be reached; is it running?")


@dataclass
class Clock:
    """A clock that is set by hand."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class World:
    """Everything behind one application."""

    bundle: Bundle
    store: FragileStore
    system: System
    ranker: Ranker
    service: Service
    metrics: ScorerMetrics
    registry: CollectorRegistry
    settings: ScorerSettings
    clock: Clock
    access: Access | None = None

    def append(self, user: str, items: list[str], at_ms: int = NOW_MS) -> None:
        """Behaviors of a user, a minute apart."""
        sequence = self.store.sequences([user])[0]
        first = sequence.version.count if sequence is not None else 0
        behaviors = [
            pack_behavior(item_key(item), at_ms + 60_000 * i, 0, 0, DEFAULT_ACTIONS.codes["click"])
            for i, item in enumerate(items)
        ]
        offsets = [first + i for i in range(len(items))]
        append = Append(user, behaviors, [0] * len(items), offsets)
        self.store.append([Group(SOURCE, [append])], at_ms)

    def cluster(self, user: str) -> None:
        """Store the user's interests as of now, as a worker would."""
        (sequence,) = self.store.sequences([user])
        assert sequence is not None
        state = self.system.extract(sequence)
        record = self.system.layout.encode(state)
        write = InterestWrite(user, self.bundle.digest, state.version, record)
        self.store.put_interests([write], NOW_MS)


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.load(bundle_directory(tmp_path_factory.mktemp("bundle")))


def bundle_directory(parent: Path) -> Path:
    return tiny_bundle(parent / "tiny")


@pytest.fixture
def world(bundle: Bundle) -> Iterator[World]:
    """The application's parts, with user "u" clustered at 30 behaviors."""
    yield from made_world(bundle, degrade=True)


@pytest.fixture
def strict_world(bundle: Bundle) -> Iterator[World]:
    """The same of a scorer that refuses to rank without its store."""
    yield from made_world(bundle, degrade=False)


def made_world(bundle: Bundle, *, degrade: bool) -> Iterator[World]:
    registry = CollectorRegistry()
    metrics = ScorerMetrics(registry)
    store = FragileStore()
    system = open_system(bundle)
    clock = Clock()
    service = Service(Readiness(metrics, degrades=degrade, clock=clock))
    ranker = Ranker(
        store,
        bundle,
        system,
        metrics,
        clock_ms=lambda: NOW_MS,
        degrade=degrade,
        monotonic=clock,
    )
    metrics.use_bundle(bundle.version)
    service.serve(ranker, StoreQuestion(store))
    settings = ScorerSettings(max_candidates=200, max_body_bytes=20_000)
    world = World(bundle, store, system, ranker, service, metrics, registry, settings, clock)
    world.append("u", [f"item-{1 + i % 20}" for i in range(30)], NOW_MS - 10_000_000)
    world.cluster("u")
    yield world
    service.close()


@pytest.fixture
async def http(world: World) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application, without a socket between."""
    async with client_of(world) as client:
        yield client


def app_of(world: World) -> Starlette:
    return create_app(
        world.service, world.settings, world.metrics, world.registry, access=world.access
    )


KEYS = {
    "shop": ["rank"],
    "tiny-only": ["rank:tiny"],
    "huge-only": ["rank:huge"],
    "watcher": [],
    "chief": ["admin"],
}
"""Scopes of callers, each of whom has the key "key of NAME"."""


def ask_callers(world: World, directory: Path, **more: float) -> None:
    """Ask whoever comes for one of `KEYS`; ``more`` is of the table of each."""
    tables = ""
    for name, scopes in KEYS.items():
        digest = hashlib.sha256(f"key of {name}".encode()).hexdigest()
        lines = [f"[{name}]", f'sha256 = "{digest}"', f"scopes = {scopes}".replace("'", '"')]
        tables += "\n".join([*lines, *(f"{key} = {value}" for key, value in more.items()), ""])
    (directory / "keys.toml").write_text(tables)
    keys = KeyFile(directory / "keys.toml", world.clock)
    model = world.bundle.manifest.name
    world.access = Access(keys, None, lambda: model, world.clock)


def client_of(world: World) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app_of(world), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://scorer")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """An LMDB store with user "u", a tiny bundle, and a port that is free."""
    settings = Settings(
        store=StoreSettings(url=f"lmdb://{tmp_path / 'store'}"),
        bundle=BundleSettings(path=bundle_directory(tmp_path)),
        scorer=ScorerSettings(port=free_port(), lame_duck_s=0),
    )
    add_behavior(settings, "u")
    return settings


def add_behavior(settings: Settings, user: str) -> None:
    """Write a behavior of a user into the store that the settings name, as a worker would."""
    store = open_store(settings.store)
    behavior = pack_behavior(item_key("item-1"), NOW_MS, 0, 0, 2)
    store.append([Group(SOURCE, [Append(user, [behavior], [0], [0])])], NOW_MS)
    store.close()
