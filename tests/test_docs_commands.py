"""Every command on a page is one: ours are read by what would read them, and others' are listed.

A block of commands is one that is indented, or fenced as sh, and begins with a word that could be a
program's name; one that is fenced as something else is something else. Each command in it is

- `lifelong`: its arguments are taken by the command line's own parser, as they stand;
- `make`: the target is in the Makefile;
- `python -m`, and torchrun: the module is there;
- `pip install`: the extra is in pyproject.toml;
- a setting (`export LIFELONG_...=`): it takes that value;
- a script of the repository;
- or of somebody else: nobody runs it here, and it stands in `OTHERS`.

What the scorer is asked by curl is run in tests/scorer.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from infra.settings import load_settings
from lifelong.cli import app

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
OTHERS = {
    # Of the system.
    *(
        "awk",
        "cd",
        "chmod",
        "cp",
        "curl",
        "df",
        "du",
        "echo",
        "fuser",
        "grep",
        "journalctl",
        "kill",
    ),
    *("ln", "ls", "mv", "openssl", "printf", "ps", "rm", "seq", "sha256sum", "sudo", "systemctl"),
    *("tail", "tar"),
    # Of containers; the chart is linted, and its templates made, in tests/infra/deploy.
    *("docker", "helm"),
    # Kafka's, a cluster's, and what speaks gRPC.
    *("kafka-configs.sh", "kafka-console-consumer.sh", "kafka-consumer-groups.sh", "grpcurl"),
    *("kafka-delete-records.sh", "kafka-topics.sh", "kafka-transactions.sh", "kubectl", "asinfo"),
}
WORD = re.compile(r"(\.venv/bin/)?[a-z][a-z0-9._-]*(\s|$)|[A-Z_]+=\S")
FENCED = re.compile(r"^```sh\n(.*?)^```$", re.DOTALL | re.MULTILINE)
INDENTED = re.compile(r"(?:\A|\n\n)((?: {4}[^\n]*(?:\n|\Z)(?:\n(?= {4}))?)+)")


def blocks(page: Path) -> list[str]:
    text = page.read_text()
    indented = [re.sub(r"^ {4}", "", one, flags=re.MULTILINE) for one in INDENTED.findall(text)]
    # What commands print stands below them, behind an empty line.
    parts = [part for one in indented for part in re.split(r"\n\s*\n", one) if part.strip()]
    found = [*FENCED.findall(text), *parts]
    return [one for one in found if one.splitlines()[0].isascii() and WORD.match(one)]


def commands(block: str) -> Iterator[list[str]]:
    """The commands of a block as words, each with the settings before it."""
    text = re.sub(r"(^|\s+)#\s.*$", "", block, flags=re.MULTILINE)
    text = re.sub(r"\[(--[^\]]+)\]", r"\1", text)  # what may be left out
    lexer = shlex.shlex(text.replace("\\\n", " "), posix=True, punctuation_chars="|&;()<>\n")
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t", True, ""
    words: list[str] = []
    for word in lexer:
        if word.strip("|&;()\n"):
            words.append(word)
        elif words:
            yield words
            words = []
    if words:
        yield words


def lifelong(words: list[str]) -> None:
    """Have the command line read its arguments; nothing runs."""
    command: Any = typer.main.get_command(app)
    context = None
    name = "lifelong"
    while True:
        context = command.make_context(name, list(words), parent=context)
        if not hasattr(command, "commands"):
            return
        words = [*context._protected_args, *context.args]
        name, command, words = command.resolve_command(context, words)


@pytest.mark.parametrize(
    ("page", "words"),
    [
        pytest.param(page, words, id=f"{page.relative_to(ROOT)}:{' '.join(words)[:60]}")
        for page in PAGES
        for block in blocks(page)
        for words in commands(block)
    ],
)
def test_a_command_on_a_page_is_one(page: Path, words: list[str]) -> None:
    if words[0] == "export":
        words = words[1:]
    given = [word for word in words if re.match(r"[A-Z_]+=", word)]
    words = words[len(given) :]
    ours = dict(one.split("=", 1) for one in given if one.startswith("LIFELONG_"))
    if "LIFELONG_CONFIG" not in ours:
        load_settings(environ=ours, config=None)
    if not words:
        return
    program, *rest = words
    program = program.removeprefix(".venv/bin/")
    if program == "lifelong":
        lifelong(rest)
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        pins = [f"install-{file.stem}" for file in (ROOT / "requirements").glob("*.txt")]
        assert rest[0] in {*targets, *pins}
    elif program in {"python", "torchrun"}:
        module, *arguments = rest[rest.index("-m") + 1 :]
        assert importlib.util.find_spec(module) is not None
        if module == "lifelong":
            lifelong(arguments)
    elif program == "pip":
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        assert rest[0] == "install"
        assert rest[1] in {f"lifelong[{extra}]" for extra in project["optional-dependencies"]}
    else:
        assert program in OTHERS or (ROOT / program).is_file(), "neither ours nor in OTHERS"
