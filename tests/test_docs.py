"""What the pages on models and training say is what the code does, and links lead somewhere."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from infra.metrics import ScorerMetrics, WorkerMetrics
from infra.settings import EventSettings, load_settings
from lifelong.learning import SHIPPED
from models.config import DataConfig, RunConfig, TrainingConfig, load_config
from models.data.divisions import ByTime, LastOfUser
from models.data.live import Live
from models.data.protocols import NextItem, Rated
from models.data.schema import Schema
from models.data.selection import Selection
from models.modules.long_term import LongTermConfig
from models.network import NetworkConfig
from models.networks import AnyConfig
from models.readers import READERS

ROOT = Path(__file__).parents[1]
MODELS = ROOT / "docs" / "models"
TRAINING = ROOT / "docs" / "training.md"
METHODS: tuple[type[LongTermConfig], ...] = get_args(AnyConfig)
SECTIONS: dict[str, type[msgspec.Struct]] = {
    "`[data]`": DataConfig,
    '`[protocol]`, `kind = "next_item"`': NextItem,
    '`[protocol]`, `kind = "rated"`': Rated,
    '`[protocol]`, `kind = "live"`': Live,
    '`[split]`, `kind = "time"`': ByTime,
    '`[split]`, `kind = "last"`': LastOfUser,
    "`[samples]`": Selection,
    "`[schema]`": Schema,
    "`[network]`": NetworkConfig,
    "`[training]`": TrainingConfig,
}


def pages() -> list[Path]:
    return [*sorted(MODELS.glob("*.md")), TRAINING]


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```toml\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def toml_blocks() -> list[Any]:
    return [
        pytest.param(block, id=f"{page.stem}-{number}")
        for page in pages()
        for number, block in enumerate(blocks(page), 1)
    ]


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_mappings_of_events_are_settings(page: str, tmp_path: Path) -> None:
    [block] = (block for block in blocks(ROOT / page) if block.startswith("[events]"))
    config = tmp_path / "lifelong.toml"
    config.write_text(block)
    assert load_settings(config=config, environ={}).events != EventSettings()


def tag(config: type[msgspec.Struct]) -> str:
    return str(config.__struct_config__.tag)


def page_of(config: type[LongTermConfig]) -> Path:
    """The page with a snippet of the method."""
    for page in sorted(MODELS.glob("*.md")):
        for block in blocks(page):
            if tomllib.loads(block).get("long_term", {}).get("network") == tag(config):
                return page
    raise AssertionError(f"no page of docs/models has a snippet of {tag(config)}")


def in_toml(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case str():
            return f'"{value}"'
        case tuple() | list():
            return f"[{', '.join(in_toml(each) for each in value)}]"
        case _:
            return str(value)


def settings(config: type[msgspec.Struct]) -> set[tuple[str, str]]:
    """Each key with its default, as a page writes them."""
    return {
        (field.name, in_toml(msgspec.structs.asdict(config())[field.name]))
        for field in msgspec.structs.fields(config)
    }


def rows(text: str) -> set[tuple[str, str]]:
    """Keys and defaults of the tables in a text."""
    return set(re.findall(r"^\| `(\w+)` \| `(.*?)` \|", text, re.MULTILINE))


def section(heading: str) -> str:
    """What stands under a heading of the training page's reference."""
    return TRAINING.read_text().split(f"\n### {heading}\n")[1].split("\n##")[0]


@pytest.mark.parametrize("block", toml_blocks())
def test_toml_on_a_page_is_a_configuration(block: str, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(block)
    load_config(file)


@pytest.mark.parametrize(
    "file", sorted((ROOT / "examples").glob("*.toml")), ids=lambda file: str(file.name)
)
@pytest.mark.parametrize("network", [tag(config) for config in METHODS])
def test_an_example_takes_any_method(file: Path, network: str) -> None:
    config = load_config(file, {"long_term.network": network})

    assert config.long_term.__struct_config__.tag == network


@pytest.mark.parametrize("config", METHODS, ids=tag)
def test_a_method_has_a_page_that_the_table_links(config: type[LongTermConfig]) -> None:
    table = (MODELS / "README.md").read_text()

    row = rf"^\|.*`{tag(config)}` \|.*\]\({page_of(config).name}\) \|$"
    assert re.search(row, table, re.MULTILINE)


@pytest.mark.parametrize("config", METHODS, ids=tag)
def test_a_method_s_page_names_every_key_and_its_default(config: type[LongTermConfig]) -> None:
    assert settings(config) <= rows(page_of(config).read_text())


@pytest.mark.parametrize("page", sorted(MODELS.glob("[a-z]*.md")), ids=lambda page: str(page.stem))
def test_a_method_s_page_names_no_other_key(page: Path) -> None:
    mine = [config for config in METHODS if page_of(config) == page]

    assert rows(page.read_text()) == set().union(*(settings(config) for config in mine))


@pytest.mark.parametrize("heading", SECTIONS)
def test_the_reference_has_exactly_a_section_s_keys(heading: str) -> None:
    assert rows(section(heading)) == settings(SECTIONS[heading])


def test_the_reference_has_every_section() -> None:
    top = dict(rows(section("At the top")))
    named = set(re.findall(r"^### `\[(\w+)\]`", TRAINING.read_text(), re.MULTILINE))

    assert set(top) | named == set(RunConfig.__struct_fields__)
    assert top.items() <= dict(settings(RunConfig)).items()


@pytest.mark.parametrize("name", [*READERS, SHIPPED])
def test_a_reader_is_listed_with_its_files_origin_and_licence(name: str) -> None:
    cells = rf"^\| `{name}` \| (.* \| .* \| .* \| .*) \|$"
    (row,) = re.findall(cells, TRAINING.read_text(), re.MULTILINE)
    reader = READERS.get(name)
    if reader is None:
        return
    assert re.findall(r"`(.*?)`", row) == list(reader.files)
    if reader.origin is not None:
        origin = reader.origin
        assert row.startswith(origin.name)
        assert row.endswith(f"{origin.url} | {origin.licence}")


every_page = pytest.mark.parametrize(
    "page",
    [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))],
    ids=lambda page: str(page.relative_to(ROOT)),
)


def series() -> set[str]:
    """Names under which a metric can be asked for."""
    registry = CollectorRegistry()
    WorkerMetrics(registry)
    ScorerMetrics(registry)
    suffixes = {"counter": ("_total",), "histogram": ("", "_bucket", "_count", "_sum")}
    return {
        metric.name + suffix
        for metric in registry.collect()
        for suffix in suffixes.get(metric.type, ("",))
    }


@every_page
def test_a_metric_on_a_page_is_one_of_ours(page: Path) -> None:
    if page.parent.name == "adr":
        return  # which tell what was decided when metrics had other names
    named = re.findall(r"\blifelong_(?:worker|scorer)_\w*\*?|\b\w+_total\b", page.read_text())

    assert set(named) - series() - {"process_cpu_seconds_total"} == set()


@every_page
def test_a_page_links_to_files_that_are_there(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())

    assert [link for link in links if not (page.parent / link).exists()] == []
