"""Pages of docs/ that are made from code: ``python -m lifelong.reference`` writes them.

Settings are those of `infra.settings`, commands those of `lifelong.cli`, decisions the titles of
what is in docs/adr.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin

import typer
from pydantic_core import PydanticUndefined
from typer.core import TyperGroup, TyperOption

from infra.settings import OF_SOURCES, SECTIONS, SourceSettings
from lifelong.cli import app

FROM: Final = """A setting comes from the first of: a flag, the environment
(`LIFELONG_BROKER__BOOTSTRAP` is `broker.bootstrap`), the file (lifelong.toml in the working
directory, or the one that `--config` or `LIFELONG_CONFIG` names), its default. A name that is none
is an error. Any setting can be a flag: `--set store.length=2000`. [The same as a file to
edit](../lifelong.example.toml)."""
EXITS: Final = """Exit codes: 0 done; 1 an error, told in one line on standard error; 2 the command
was misspelt; 3 a check found something wrong; 130 interrupted. Results go to standard output, and
as JSON to where `--json` says; log lines go to standard error."""
KINDS: Final[dict[Any, str]] = {int: "N", float: "X", str: "TEXT", Path: "PATH"}
DOCS: Final = Path(__file__).parents[1] / "docs"


def pages() -> dict[str, str]:
    """The pages, by their places in docs/."""
    return {"settings.md": settings(), "cli.md": commands(), "adr/README.md": decisions()}


def settings() -> str:
    """The page of all settings."""
    lines = [
        "# Settings",
        "",
        "<!-- Written by `python -m lifelong.reference` from infra/settings.py. -->",
        "",
        FROM,
    ]
    for section, model in SECTIONS.items():
        lines += ["", f"## `[{section}]`", "", _sentence(model.__doc__), ""]
        lines += ["| setting | default | |", "| --- | --- | --- |"]
        defaults = model()
        for name, leaf in model.model_fields.items():
            shown = _shown(getattr(defaults, name), leaf.default is PydanticUndefined)
            lines.append(f"| `{name}` | {shown} | {_cell(leaf.description or '')} |")
    lines += ["", "## `[[sources]]`", "", _sentence(SourceSettings.__doc__), ""]
    lines += ["| setting | |", "| --- | --- |"]
    for name in OF_SOURCES:
        about = SourceSettings.model_fields[name].description or ""
        lines.append(f"| `{name}` | {_cell(about)} |")
    return "\n".join([*lines, ""])


def commands() -> str:
    """The page of all commands."""
    lines = [
        "# Command line",
        "",
        "<!-- Written by `python -m lifelong.reference` from lifelong/cli.py. -->",
        "",
        EXITS,
    ]
    for path, command in _commands(typer.main.get_command(app), ("lifelong",)):
        context = command.context_class(command, info_name=" ".join(path))
        pieces = [piece.strip("{}") for piece in command.collect_usage_pieces(context)]
        usage = " ".join([*path, *(piece.upper() for piece in pieces)])
        lines += ["", f"## `{' '.join(path)}`", "", "```text", usage, "```", ""]
        lines += [_sentence(command.help)]
        rows = [_option(one) for one in command.params if isinstance(one, TyperOption)]
        if rows := [row for row in rows if row]:
            lines += ["", "| option | |", "| --- | --- |", *rows]
    return "\n".join([*lines, ""])


def decisions() -> str:
    """The list of decisions."""
    lines = [
        "# Decisions",
        "",
        "<!-- Written by `python -m lifelong.reference` from the titles of the pages. -->",
        "",
        "What was decided that could surprise you: why, what else was weighed, and what it costs.",
        "",
    ]
    for page in sorted((DOCS / "adr").glob("0*.md")):
        title = page.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        number, _, name = title.partition(". ")
        lines.append(f"- {number}: [{name}]({page.name})")
    return "\n".join([*lines, ""])


def _commands(command: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The commands below one, without those that only have others below them."""
    if not isinstance(command, TyperGroup):
        yield path, command
        return
    for name, below in command.commands.items():
        if not below.hidden:
            yield from _commands(below, (*path, name))


def _option(option: TyperOption) -> str:
    if option.hidden:
        return ""
    names = ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])
    if not option.is_flag:
        names += f" {_cell(_values(option))}"
    default = option.default
    told = (
        "" if default in {None, False, True, ""} or callable(default) else f" Default: {default}."
    )
    return f"| {names} | {_cell(option.help or '')}{told} |"


def _values(option: TyperOption) -> str:
    """What may follow an option."""
    if option.metavar is not None:
        return option.metavar
    words: list[str] = []
    for kind in _kinds(option.type_descriptor.annotation):
        words += [str(one) for one in get_args(kind)] or [KINDS.get(kind, "TEXT")]
    return " or ".join(words)


def _kinds(annotation: Any) -> list[Any]:
    """The kinds of values, without None and what may come several times."""
    if get_origin(annotation) is Literal or annotation in KINDS:
        return [annotation]
    found = [_kinds(one) for one in get_args(annotation) if one is not type(None)]
    return [one for each in found for one in each] or [annotation]


def _shown(value: object, made: bool) -> str:
    if value is None:
        return "none"
    if made and not isinstance(value, dict | tuple):
        return f"`{value}`, of other settings" if isinstance(value, int) else f"`{value}`"
    if isinstance(value, datetime):
        return f"`{value.date().isoformat()}`"
    return f"`{json.dumps(value, default=str)}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _sentence(text: str | None) -> str:
    return re.sub(r"\s+", " ", text or "").strip()


def main() -> None:
    """Write them."""
    for name, text in pages().items():
        (DOCS / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
