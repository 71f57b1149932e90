from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer.main
from typer.core import TyperGroup

from infra.settings import Settings
from lifelong.cli import app

RUNBOOKS = Path(__file__).parents[3] / "docs" / "runbooks"

pages = pytest.mark.parametrize(
    "page",
    [*sorted(RUNBOOKS.glob("*.md")), RUNBOOKS.parent / "production.md"],
    ids=lambda page: str(page.stem),
)


@pages
def test_a_command_of_ours_exists_with_its_options(page: Path) -> None:
    for line in re.findall(r"(?:^ {4,}|`)lifelong ([a-z][^`#\n]*)", page.read_text(), re.MULTILINE):
        command = typer.main.get_command(app)
        words = line.split()
        while isinstance(command, TyperGroup):
            word = words.pop(0)
            assert word in command.commands, f"lifelong {line}"
            command = command.commands[word]
        options = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options, f"lifelong {line}"


@pages
def test_a_command_on_a_line_of_its_own_stands_in_a_block(page: Path) -> None:
    assert (
        re.findall(r"^(?:curl|lifelong|kafka-\S+|python) .*", page.read_text(), re.MULTILINE) == []
    )


@pages
def test_a_setting_exists(page: Path) -> None:
    sections = {name: type(getattr(Settings(), name)) for name in Settings.model_fields}
    named = re.findall(rf"`({'|'.join(sections)})\.(\w+)[` ]", page.read_text())

    assert {one for one in named if one[1] not in sections[one[0]].model_fields} == set()
