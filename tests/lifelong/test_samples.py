"""Samples through a source: what the pages of formats show is what `lifelong check` says."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import pytest

from infra.errors import SettingsError
from infra.settings import Settings, load_settings
from lifelong.samples import run_sample
from streaming.events.formats import with_preset
from tests.schema_registry import RegistryDouble
from tests.streaming.events.formats.producing import register_sample

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs" / "formats").glob("[a-z]*.md"))
SHOWN = re.compile(
    r"^```console\n\$ lifelong check --source (\S+) --sample (\S+)\n(.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


def block(page: Path) -> str:
    found = re.search(r"^```toml\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_shows_what_becomes_of_its_sample(
    page: Path, registry: RegistryDouble, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    register_sample(page.stem, registry, tmp_path)
    config = tmp_path / "lifelong.toml"
    config.write_text(block(page).replace("http://127.0.0.1:8081", registry.url))
    shown = SHOWN.search(page.read_text())
    assert shown is not None
    settings = load_settings(config=config, environ={}).reading(shown[1])

    run_sample(settings, ROOT / shown[2], quiet=False)

    assert capsys.readouterr().out == shown[3]
    assert settings.events.format == page.stem
    assert with_preset(settings.events).format == page.stem


def records(tmp_path: Path, content: bytes, name: str = "sample.jsonl") -> list[list[str]]:
    """What decides of each event, by record."""
    file = tmp_path / name
    file.write_bytes(content)
    report = run_sample(Settings(), file, quiet=True)
    return [
        [event.get("refused", event.get("user_id", "")) for event in record["events"]]
        for record in report["records"]
    ]


EVENT = b'{"user_id": "u", "item_id": "i", "action": "view", "event_time": 1700000000000}'


def test_a_file_of_lines_has_a_record_a_line(tmp_path: Path) -> None:
    assert records(tmp_path, EVENT + b"\n\n{\n") == [["u"], ["not_json"]]


def test_any_other_file_is_one_record(tmp_path: Path) -> None:
    assert records(tmp_path, EVENT + b"\n" + EVENT, "sample.bin") == [["u", "u"]]


def test_a_line_may_be_in_base64(tmp_path: Path) -> None:
    assert records(tmp_path, base64.b64encode(EVENT) + b"\n", "sample.b64") == [["u"]]
    with pytest.raises(SettingsError, match="is not base64"):
        records(tmp_path, b"%", "sample.b64")


def test_a_key_is_looked_at_where_it_is_known(tmp_path: Path) -> None:
    payload = EVENT.decode().replace('"', '\\"')
    lines = [
        f'{{"topic": "t", "offset": 1, "key": {key}, "payload": "{payload}"}}'.encode()
        for key in ('"u"', '"other"', "null")
    ]
    found = records(tmp_path, b"\n".join(lines))
    assert found == [["u"], ["key_mismatch"], ["key_mismatch"]]


@pytest.mark.parametrize("content", [b"", b"\n\n"])
def test_a_sample_must_hold_something(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(SettingsError, match="holds nothing"):
        records(tmp_path, content)
    with pytest.raises(SettingsError, match="cannot be read"):
        run_sample(Settings(), tmp_path / "none", quiet=True)
