"""Bundles that are exchanged under a scorer's requests."""

from __future__ import annotations

import asyncio
import gc
import shutil
import signal
import subprocess
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest

from extractor.reloading import Reloader
from extractor.system import System
from extractor.systems import load_system, open_system
from infra.settings import BundleSettings, Settings, StoreSettings
from models.bundle import SCORER, Bundle, look, sign
from scorer.client import RankClient
from scorer.ranking import Ranker
from tests.bundles import tiny_bundle
from tests.scorer.conftest import NOW_MS, World, client_of
from tests.scorer.running import WAIT_S, get, running, until, until_ready, with_processes

ASKED = {"user": "u", "candidates": [f"item-{i}" for i in range(1, 21)], "time": NOW_MS}
INFER = {
    "inputs": [
        {"name": "user", "datatype": "BYTES", "shape": [1], "data": ["u"]},
        {"name": "candidates", "datatype": "BYTES", "shape": [1, 1], "data": ["item-1"]},
    ]
}


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another bundle of the same items, with CTRs of its own."""
    return tiny_bundle(tmp_path_factory.mktemp("other") / "other", seed=1)


class Following:
    """The world's application over a directory that it follows."""

    def __init__(self, world: World, place: Path, public_key: Path | None = None) -> None:
        self.world, self.place = world, place
        self.settings = Settings(
            bundle=BundleSettings(path=place, public_key=public_key),
            store=StoreSettings(length=10_000),
        )
        self.reloader = Reloader(
            self.settings,
            world.bundle,
            world.system,
            self.adopt,
            world.metrics,
            self.warn,
            load=load_system,
        )

    def adopt(self, bundle: Bundle, system: System) -> None:
        world = self.world
        world.service.replace(
            Ranker(world.store, bundle, system, world.metrics, clock_ms=lambda: NOW_MS)
        )
        world.metrics.use_bundle(bundle.version)

    def warn(self, what: str | None) -> None:
        self.world.service.readiness.bundle_warning = what

    def put(self, bundle: Path) -> None:
        """Put a bundle in the place, as a whole."""
        replace(self.place, bundle)


@pytest.fixture
def following(world: World, tmp_path: Path) -> Following:
    place = tmp_path / "bundle"
    shutil.copytree(world.bundle.path, place)
    return Following(world, place)


async def test_requests_are_answered_by_the_new_bundle_after_the_exchange(
    following: Following, other: Path
) -> None:
    version = Bundle.load(other, verify=False).version
    async with client_of(following.world) as http:
        before = (await http.post("/v1/rank", json=ASKED)).json()
        following.put(other)
        assert following.reloader.now().outcome == "reloaded"
        after = (await http.post("/v1/rank", json=ASKED)).json()
        model = (await http.get("/v2/models/tiny")).json()
        inferred = (await http.post("/v2/models/tiny/infer", json=INFER)).json()

    assert before["version"] == following.world.bundle.version
    assert (before["history"], after["history"]) == ("interests", "sequence")
    assert before["items"] != after["items"]
    assert after["version"] == inferred["model_version"] == version
    assert model["versions"] == [version]


def test_a_bundle_that_is_not_signed_leaves_the_one_in_service(
    world: World, other: Path, tmp_path: Path
) -> None:
    key, public = tmp_path / "key.pem", tmp_path / "key.pub"
    for command in (
        ("genpkey", "-algorithm", "ed25519", "-out", str(key)),
        ("pkey", "-in", str(key), "-pubout", "-out", str(public)),
    ):
        subprocess.run(["openssl", *command], check=True, capture_output=True)
    following = Following(world, tmp_path / "bundle", public)
    shutil.copytree(other, following.place)

    refused = following.reloader.now()

    assert (refused.outcome, refused.version) == ("failed", following.world.bundle.version)
    assert "is not signed" in str(refused.reason)
    assert "not signed by those" in str(following.world.service.readiness.bundle_warning)
    sign(following.place, key)
    assert following.reloader.poll().outcome == "waiting"
    assert following.reloader.poll().outcome == "reloaded"


async def test_states_of_the_new_bundle_are_used_once_there_are_some(
    following: Following, other: Path
) -> None:
    following.put(other)
    following.reloader.now()
    following.world.bundle = Bundle.load(other, verify=False)
    following.world.system = open_system(following.world.bundle)
    following.world.cluster("u")
    async with client_of(following.world) as http:
        answer = (await http.post("/v1/rank", json=ASKED)).json()

    assert answer["history"] == "interests"


async def test_a_request_that_waits_meanwhile_is_answered_by_the_bundle_that_it_came_to(
    following: Following, other: Path
) -> None:
    service, before = following.world.service, following.world.bundle.version
    begun, go_on = threading.Event(), threading.Event()

    def job(ranker: Ranker) -> str:
        begun.set()
        assert go_on.wait(30)
        ranker.rank("u", ["item-1"])
        return ranker.bundle.version

    under_way = asyncio.create_task(service.run(job))
    await asyncio.to_thread(begun.wait, 30)
    waiting = asyncio.create_task(service.run(lambda ranker: ranker.bundle.version))
    await asyncio.sleep(0)
    following.put(other)
    outcome = (await asyncio.to_thread(following.reloader.now)).outcome
    later = asyncio.create_task(service.run(lambda ranker: ranker.bundle.version))
    await asyncio.sleep(0)
    go_on.set()

    assert outcome == "reloaded"
    assert [await under_way, await waiting] == [before, before]
    assert await later == following.world.service.ranker.bundle.version != before


async def test_a_ranker_that_a_request_has_named_answers_it_after_the_exchange(
    following: Following, other: Path
) -> None:
    service = following.world.service
    named = service.ranker
    following.put(other)
    following.reloader.now()

    assert service.ranker is not named
    assert await service.run(lambda ranker: ranker is named, named)


async def test_a_broken_bundle_leaves_the_one_in_service_and_a_scorer_ready(
    following: Following, other: Path
) -> None:
    following.put(other)
    broken = following.place / SCORER
    broken.write_bytes(bytes(broken.stat().st_size))
    outcome = following.reloader.now()
    async with client_of(following.world) as http:
        answer = (await http.post("/v1/rank", json=ASKED)).json()
        ready = await http.get("/v2/health/ready")

    assert outcome.outcome == "failed"
    assert "scorer.onnx does not match its sha256" in str(outcome.reason)
    assert answer["version"] == following.world.bundle.version
    assert ready.status_code == 200
    (warning,) = ready.json()["warnings"]
    assert "a file of it is damaged" in warning
    assert str(following.place) not in warning


def test_a_directory_that_is_written_file_by_file_is_taken_when_it_is_whole(
    following: Following, other: Path
) -> None:
    """The manifest comes before what it lists, as names go."""
    shutil.rmtree(following.place)
    following.place.mkdir()
    outcomes = []
    for file in sorted(other.iterdir()):
        whole = file.read_bytes()
        (following.place / file.name).write_bytes(whole[: len(whole) // 2])
        outcomes += [following.reloader.poll().outcome for _ in range(2)]
        (following.place / file.name).write_bytes(whole)
    last = [following.reloader.poll().outcome for _ in range(2)]

    assert set(outcomes) == {"waiting"}
    assert last == ["waiting", "reloaded"]


def test_a_link_that_is_switched_is_followed(
    following: Following, other: Path, tmp_path: Path
) -> None:
    current = tmp_path / "current"
    current.symlink_to(following.place)
    following = Following(following.world, current)
    assert following.reloader.now().outcome == "same"

    fresh = tmp_path / "fresh"
    fresh.symlink_to(other)
    fresh.rename(current)

    assert following.reloader.now().outcome == "reloaded"


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        ({**ASKED, "explain": True}, 200),
        ({**ASKED, "candidates": ["unheard-of"], "unknown_items": "refuse"}, 422),
        ({**ASKED, "candidates": 1}, 400),
    ],
)
async def test_the_bundle_before_is_let_go_whatever_it_was_asked(
    following: Following, asked: dict[str, Any], status: int
) -> None:
    """Without a search for what refers to itself: a scorer would stand still for that."""
    async with client_of(following.world) as http:
        gc.disable()
        try:
            following.adopt(*load_system(following.settings))
            held = weakref.ref(following.world.service.ranker.bundle)
            assert (await http.post("/v1/rank", json=asked)).status_code == status
            following.adopt(*load_system(following.settings))
            async with asyncio.timeout(20):
                while held() is not None:  # noqa: ASYNC110  # nothing tells of it
                    await asyncio.sleep(0.01)
        finally:
            gc.enable()


def test_a_process_follows_when_it_is_told_and_a_broken_bundle_ends_nothing(
    settings: Settings, other: Path, tmp_path: Path
) -> None:
    settings = never_polled(settings)
    before = served(settings)
    broken = tmp_path / "broken"
    shutil.copytree(other, broken)
    (broken / SCORER).write_bytes(bytes((other / SCORER).stat().st_size))
    with running(settings) as process:
        until_ready(settings)
        put(broken, settings)
        process.send_signal(signal.SIGHUP)
        until(lambda: "a file of it is damaged" in get(settings, "/v2/health/ready")[1])
        assert get(settings, "/v2/health/ready")[0] == 200
        with RankClient(f"http://127.0.0.1:{settings.scorer.port}") as client:
            assert client.rank("u", ["item-1"]).version == before

            put(other, settings)
            process.send_signal(signal.SIGHUP)
            until(lambda: client.rank("u", ["item-1"]).version == served(settings))
        assert served(settings) != before
        # It answers by the new one some moments before the reloading is over.
        until(lambda: "warnings" not in get(settings, "/v2/health/ready")[1])
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=WAIT_S)
        assert process.returncode == 0
    assert "scorer.onnx does not match its sha256" in said
    assert "Traceback" not in said


def test_a_supervisor_passes_on_that_it_was_told(settings: Settings, other: Path) -> None:
    settings = with_processes(never_polled(settings), 2)
    with running(settings) as process:
        until_ready(settings)
        before = served(settings)
        put(other, settings)
        after = served(settings)
        process.send_signal(signal.SIGHUP)
        until(lambda: (figure_of(settings, before), figure_of(settings, after)) == (0, 1))
        assert get(settings, "/v2/health/ready")[0] == 200
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=WAIT_S)
        assert process.returncode == 0
    assert "Traceback" not in said


def figure_of(settings: Settings, version: str) -> float:
    """1 while a process has this version in service. One that comes up late has taken the other at
    once, and exchanged nothing.
    """
    figure = f'lifelong_scorer_bundle_info{{version="{version}"}} '
    said = get(settings, "/metrics")[1].partition(figure)[2]
    return float(said.partition("\n")[0] or 0)


def never_polled(settings: Settings) -> Settings:
    bundle = settings.bundle.model_copy(update={"poll_s": 0.0})
    return settings.model_copy(update={"bundle": bundle})


def put(bundle: Path, settings: Settings) -> None:
    """Put a bundle where the settings say, as a whole."""
    assert settings.bundle.path is not None
    replace(settings.bundle.path, bundle)


def served(settings: Settings) -> str:
    """The version of what is where the settings say."""
    assert settings.bundle.path is not None
    digest = look(settings.bundle.path).digest
    assert digest is not None
    return digest.hex()


def replace(place: Path, bundle: Path) -> None:
    coming = place.with_name("coming")
    shutil.copytree(bundle, coming)
    shutil.rmtree(place)
    coming.rename(place)
