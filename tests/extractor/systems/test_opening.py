"""Settings to a bundle and its system."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from extractor.systems import check_actions, load_system, open_system
from extractor.systems.encode import EncodeSystem
from infra.behaviors import ActionNames
from infra.errors import BundleIncompatible, BundleMissing, SettingsError
from infra.settings import Settings, load_settings
from models.bundle import Bundle
from models.features import Rates
from tests.bundles import tiny_bundle


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


def settings(path: Path, **changes: Any) -> Settings:
    return load_settings({"bundle": {"path": str(path)}, **changes}, environ={})


def test_the_manifest_says_which_system(path: Path) -> None:
    bundle, system = load_system(settings(path))
    assert isinstance(system, EncodeSystem)
    assert system.digest == bundle.digest


def test_a_bundle_of_another_system_is_refused_by_name(path: Path) -> None:
    bundle = Bundle.load(path)
    manifest = msgspec.structs.replace(bundle.manifest, system="encod")
    with pytest.raises(BundleIncompatible, match="'encod', which is not served; did you mean enc"):
        open_system(replace(bundle, manifest=manifest))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"long_term": {"clustering": "random"}}, "clustering 'random'"),
        ({"offline": None}, "no settings of the offline stage"),
        ({"tables": {}}, "no item table 'projected' of float32 and width 4"),
        ({"stored": {}}, "lays out states otherwise"),
    ],
)
def test_a_bundle_of_encode_that_is_not_run_here_is_refused(
    path: Path, change: dict[str, Any], words: str
) -> None:
    bundle = Bundle.load(path)
    manifest = msgspec.structs.replace(bundle.manifest, **change)
    with pytest.raises(BundleIncompatible, match=words) as caught:
        open_system(replace(bundle, manifest=manifest))
    assert "\n" not in str(caught.value)


def test_a_store_that_keeps_too_little_is_an_error_at_the_start(path: Path) -> None:
    with pytest.raises(SettingsError, match=r"^store.length = 63 is less than the 64 .* tiny "):
        load_system(settings(path, store={"length": 63}))
    assert load_system(settings(path, store={"length": 64}))


def test_a_network_that_sees_an_action_that_is_not_declared_is_refused(path: Path) -> None:
    manifest = msgspec.structs.replace(
        Bundle.load(path).manifest,
        actions=("view", "answered right", "answered wrong"),
        schema={"behavior": ["action"]},
    )
    check_actions(manifest, ActionNames(("answered wrong", "view", "answered right", "skipped")))
    with pytest.raises(SettingsError) as caught:
        check_actions(manifest, ActionNames(("view", "answered")))
    assert str(caught.value) == (
        "events.action_names lacks 'answered right' and 1 more, which the bundle tiny was trained"
        " on; add what is missing at its end, or take another bundle"
    )


def test_actions_of_rates_must_be_declared_too(path: Path) -> None:
    rates = Rates(positive=("like",), base=0.5)
    manifest = msgspec.structs.replace(
        Bundle.load(path).manifest, actions=("view", "like"), rates=rates
    )
    check_actions(manifest, ActionNames(("like", "view")))
    with pytest.raises(SettingsError, match="lacks 'like', which the bundle tiny"):
        check_actions(manifest, ActionNames(("view",)))


def test_codes_are_rows_by_the_names_that_are_declared(path: Path) -> None:
    bundle = Bundle.load(path)
    manifest = msgspec.structs.replace(bundle.manifest, actions=("view", "like"))
    declared = replace(bundle, manifest=manifest).declaring(ActionNames(("like", "buy", "view")))
    codes = np.array([0, 1, 2, 3, 200], np.uint8)
    assert declared.action_rows(codes).tolist() == [0, 2, 0, 1, 0]


def test_actions_that_a_network_does_not_see_need_not_be_declared(path: Path) -> None:
    manifest = msgspec.structs.replace(Bundle.load(path).manifest, actions=("rated 5",))
    check_actions(manifest, ActionNames(("view",)))


def test_another_version_than_the_pinned_one_is_refused(path: Path) -> None:
    pinned = {"path": str(path), "version": "00000000"}
    with pytest.raises(BundleIncompatible, match=r"bundle\.version asks for 00000000"):
        load_system(load_settings({"bundle": pinned}, environ={}))


def test_without_a_bundle_there_is_nothing_to_load() -> None:
    with pytest.raises(BundleMissing, match=r"bundle\.path is not set"):
        load_system(load_settings({}, environ={}))
