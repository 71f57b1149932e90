from __future__ import annotations

from pathlib import Path

from extractor.systems import open_system
from lifelong.portrait import name_interests, title_of
from models.bundle import Bundle
from tests.bundles import tiny_bundle
from tests.extractor.items import sequence_of
from tests.extractor.systems.test_contract import on_items


def test_interests_are_named_by_the_titles_of_their_items(tmp_path: Path) -> None:
    bundle = Bundle.load(tiny_bundle(tmp_path / "tiny"))
    system = open_system(bundle)
    sequence = sequence_of(on_items([3, 3, 3, 8]))
    named = name_interests(bundle, system, sequence, system.extract(sequence), 5)
    assert [(one.share, one.items) for one in named] == [(0.75, ["Item 3"]), (0.25, ["Item 8"])]


def test_an_item_without_a_title_is_called_by_its_id() -> None:
    class Untitled:
        titles = ("", "")
        item_ids = ("", "item-1")

    assert title_of(Untitled(), 1) == "item-1"  # type: ignore[arg-type]
