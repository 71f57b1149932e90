"""The following of a bundle's directory, with bundles that are only names."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry

from extractor.reloading import IN_USE, LET_GO_S, LOOK_S, Reloader
from infra.errors import BundleCorrupt
from infra.metrics import ScorerMetrics
from infra.settings import BundleSettings, Settings
from models.bundle import Found

PATH = Path("/srv/bundle")


class FakeBundle:
    def __init__(self, digest: bytes) -> None:
        self.digest = digest
        self.version = digest.hex()
        self.manifest = SimpleNamespace(name="fake")


class FakeSystem:
    pass


@dataclass
class Directory:
    """What a directory holds, set by hand."""

    found: Found

    def hold(self, digest: bytes | None, lacking: str | None = None, stamp: int = 0) -> None:
        self.found = Found(PATH, digest, lacking, (stamp,))


class House:
    """A process that follows a directory."""

    def __init__(self) -> None:
        self.directory = Directory(Found(PATH, b"a", None))
        self.registry = CollectorRegistry()
        self.warning: str | None = None
        self.loads = 0
        self.fault: Exception | None = None
        self.while_loading: Any = lambda: None
        self.slept_s = 0.0
        self.in_service = cast(Any, (FakeBundle(b"a"), FakeSystem()))
        self.in_use: list[Any] = []
        self.reloader = Reloader(
            Settings(bundle=BundleSettings(path=PATH)),
            self.in_service[0],
            self.in_service[1],
            self.adopt,
            ScorerMetrics(self.registry),
            self.warn,
            load=self.load,
            look=lambda _: self.directory.found,
            sleep=self.sleep,
        )

    def load(self, settings: Settings) -> Any:
        assert settings.bundle.path == PATH
        self.loads += 1
        bundle = FakeBundle(cast(bytes, self.directory.found.digest))
        self.while_loading()
        if self.fault is not None:
            raise self.fault
        return bundle, FakeSystem()

    def adopt(self, bundle: Any, system: Any) -> None:
        self.in_service = bundle, system

    def warn(self, what: str | None) -> None:
        self.warning = what

    def sleep(self, seconds: float) -> None:
        self.slept_s += seconds

    @property
    def version(self) -> bytes:
        return cast(bytes, self.in_service[0].digest)

    def figure(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"lifelong_scorer_bundle_{name}", labels)


@pytest.fixture
def house() -> House:
    return House()


def test_the_bundle_in_service_is_left_alone(house: House) -> None:
    assert [house.reloader.poll().outcome for _ in range(3)] == ["same"] * 3
    assert house.loads == 0
    assert house.figure("pending") == 0


def test_another_bundle_is_taken_once_two_looks_find_the_same(house: House) -> None:
    house.directory.hold(b"b")

    assert house.reloader.poll().outcome == "waiting"
    assert house.figure("pending") == 1
    assert house.reloader.poll() == ("reloaded", b"b".hex(), None)
    assert house.version == b"b"
    assert house.figure("pending") == 0
    assert house.figure("reloads_total", outcome="reloaded") == 1


def test_who_asks_need_not_wait_for_another_look(house: House) -> None:
    house.directory.hold(b"b")

    assert house.reloader.now().outcome == "reloaded"


def test_a_bundle_that_is_not_whole_is_no_failure_until_it_is(house: House) -> None:
    house.directory.hold(b"b", lacking="scorer.onnx is absent")
    outcomes = [house.reloader.poll().outcome for _ in range(5)]

    assert outcomes == ["waiting"] * 5
    assert house.loads == 0
    assert house.figure("reloads_total", outcome="failed") == 0
    assert "not whole" in str(house.warning)

    house.directory.hold(b"b", stamp=1)
    house.reloader.poll()
    assert house.reloader.poll().outcome == "reloaded"
    assert house.warning is None


def test_a_broken_bundle_is_tried_once_and_the_one_in_service_stays(house: House) -> None:
    house.directory.hold(b"b")
    house.fault = BundleCorrupt(f"{PATH}/scorer.onnx does not match its sha256")
    outcomes = [house.reloader.poll().outcome for _ in range(5)]

    assert outcomes == ["waiting", *["failed"] * 4]
    assert house.loads == 1
    assert house.version == b"a"
    assert house.figure("pending") == 1
    assert house.figure("reloads_total", outcome="failed") == 1
    assert "sha256" in str(house.reloader.poll().reason)


def test_the_warning_tells_of_what_failed_and_of_no_path(house: House) -> None:
    house.directory.hold(b"b")
    house.fault = BundleCorrupt(f"{PATH}/scorer.onnx does not match its sha256")
    house.reloader.now()

    assert "a file of it is damaged" in str(house.warning)
    assert str(PATH) not in str(house.warning)


def test_what_failed_is_tried_again_when_asked_and_when_it_has_changed(house: House) -> None:
    house.directory.hold(b"b")
    house.fault = BundleCorrupt("damaged")
    house.reloader.now()
    house.reloader.now()
    assert house.loads == 2

    house.directory.hold(b"b", stamp=1)
    house.fault = None
    house.reloader.poll()
    assert house.reloader.poll().outcome == "reloaded"
    assert house.warning is None


def test_a_bundle_that_fails_goes_and_the_one_in_service_comes_back(house: House) -> None:
    house.directory.hold(b"b")
    house.fault = BundleCorrupt("damaged")
    house.reloader.now()
    house.directory.hold(b"a")
    house.reloader.poll()

    assert house.reloader.poll().outcome == "same"
    assert house.warning is None
    assert house.figure("pending") == 0


def test_what_is_exchanged_while_it_is_loaded_is_not_taken(house: House) -> None:
    house.directory.hold(b"b")
    house.while_loading = lambda: house.directory.hold(b"c")

    assert house.reloader.now().outcome == "waiting"
    assert house.version == b"a"
    assert house.figure("reloads_total", outcome="failed") == 0


def test_a_file_that_is_gone_because_of_an_exchange_is_no_failure(house: House) -> None:
    house.directory.hold(b"b")
    house.while_loading = lambda: house.directory.hold(b"c")
    house.fault = BundleCorrupt("scorer.onnx is absent")

    assert house.reloader.now().outcome == "waiting"
    assert house.figure("reloads_total", outcome="failed") == 0


def test_no_third_bundle_is_loaded_while_the_one_before_is_in_use(house: House) -> None:
    house.in_use.append(house.in_service)
    house.directory.hold(b"b")
    house.reloader.now()
    house.directory.hold(b"c")

    assert house.reloader.now().outcome == "waiting"
    assert house.loads == 1
    assert house.slept_s == pytest.approx(LET_GO_S, abs=LOOK_S)

    assert house.warning == IN_USE
    house.in_use.clear()
    assert house.reloader.now().outcome == "reloaded"
    assert house.warning is None


def test_a_bundle_that_stays_in_use_is_warned_of_until_it_is_let_go(house: House) -> None:
    house.in_use.append(house.in_service)
    house.directory.hold(b"b")
    house.reloader.start()
    house.reloader.ask()
    until(lambda: house.warning == IN_USE)
    assert house.reloader.now().outcome == "same"
    assert house.warning == IN_USE

    house.in_use.clear()
    house.reloader.now()
    house.reloader.close()
    assert house.warning is None


def test_its_thread_looks_when_it_is_asked_and_ends_when_it_is_closed(house: House) -> None:
    house.directory.hold(b"b")
    house.reloader.start()
    house.reloader.ask()
    until(lambda: house.version == b"b")
    house.reloader.close()

    house.directory.hold(b"c")
    house.reloader.ask()
    assert house.version == b"b"


def until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.01)
