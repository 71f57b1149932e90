"""What docstrings, comments and pages name is there, under that name.

In Python, a dotted name in single backticks refers to a module, to a word of the same file, or to
what the repository defines; double backticks are for what is none of these. On a page only names
count that begin with a room or a class of ours. Paths of files count in both. All is read as text:
nothing is imported.
"""

from __future__ import annotations

import ast
import builtins
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("infra", "models", "extractor", "streaming", "scorer", "lifelong", "tests")
PAGES = [*sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs").glob("*/*.md"))]

NAME = re.compile(r"(?<![`\w])`([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)`(?!`)")
PATH = re.compile(rf"(?<![\w./-])(?:{'|'.join(ROOMS)}|docs|examples)/[\w./-]+\.(?:py|md|toml)\b")
GIVEN = sys.stdlib_module_names | set(dir(builtins))
"""What Python itself has."""


class Source:
    """A file: its words, what it defines, and what is said in it."""

    def __init__(self, file: Path) -> None:
        self.file = file
        parts = file.relative_to(ROOT).with_suffix("").parts
        self.package = ".".join(parts[:-1])
        self.module = self.package if parts[-1] == "__init__" else ".".join(parts)
        tree = ast.parse(file.read_text())
        nodes = list(ast.walk(tree))
        self.classes = {node.name: node for node in nodes if isinstance(node, ast.ClassDef)}
        self.defined = set(_words(tree.body)) | self.classes.keys()
        self.words = set(_words(nodes)) | self.defined
        self.foreign = set(_packages(nodes)) - set(ROOMS)
        self.docstrings = [
            node.value.value
            for node in nodes
            if isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ]

    def said(self) -> Iterator[str]:
        """Docstrings, those of attributes too, and comments."""
        yield from self.docstrings
        with tokenize.open(self.file) as lines:
            for token in tokenize.generate_tokens(lines.readline):
                if token.type == tokenize.COMMENT:
                    yield token.string


def _words(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """Names that nodes define, import, or are."""
    for node in nodes:
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield name
            case ast.Assign(targets=targets):
                yield from (each.id for each in targets if isinstance(each, ast.Name))
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                yield from (each.asname or each.name for each in aliases)
            case ast.Name(id=name) | ast.arg(arg=name) | ast.Attribute(attr=name):
                yield name
            case ast.keyword(arg=str(name)):
                yield name


def _packages(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """First parts of the modules that nodes import."""
    for node in nodes:
        match node:
            case ast.ImportFrom(module=str(module)):
                yield module.partition(".")[0]
            case ast.Import(names=aliases):
                yield from (each.name.partition(".")[0] for each in aliases)


@cache
def sources() -> dict[str, Source]:
    """All files, by module."""
    files = [file for room in ROOMS for file in sorted((ROOT / room).rglob("*.py"))]
    return {source.module: source for source in map(Source, files)}


@cache
def members() -> dict[str, set[str]]:
    """By class of the repository: what is defined in it, or in a class that it extends."""
    nodes = [node for source in sources().values() for node in source.classes.values()]
    found: dict[str, set[str]] = {}
    for node in nodes:
        found.setdefault(node.name, set()).update(_words(ast.walk(node)))
    bases = {node.name: [ast.unparse(base) for base in node.bases] for node in nodes}

    def whole(name: str) -> set[str]:
        own = found.get(name, set())
        return own.union(*(whole(base) for base in bases.get(name, ()) if base != name))

    return {name: whole(name) for name in found}


@cache
def defined() -> set[str]:
    """What stands at the top of any file."""
    return set().union(*(source.defined for source in sources().values()))


def in_repository(name: str) -> bool:
    """Whether a dotted name is a module, what one defines, a class's member, or a setting."""
    parts = name.strip(".").split(".")
    if is_setting(parts):  # a section may be called as a package is
        return True
    for length in range(len(parts), 0, -1):
        source = sources().get(".".join(parts[:length]))
        if source is not None:
            rest = parts[length:]
            return not rest or (rest[0] in source.defined and (not rest[1:] or is_member(rest)))
    return is_member(parts)


def is_setting(parts: list[str]) -> bool:
    """Whether these are a section of the settings and a key of it."""
    return is_member([f"{parts[0].capitalize()}Settings", *parts[1:]])


def is_member(parts: list[str]) -> bool:
    """Whether these are a class and a member of it."""
    return len(parts) == 2 and parts[1] in members().get(parts[0], ())


def resolves(name: str, source: Source) -> bool:
    """Whether a name that stands in a file means something there."""
    if name in source.words | defined() or name.partition(".")[0] in GIVEN | source.foreign:
        return True
    return in_repository(name) or in_repository(f"{source.package}.{name}")


def lost_paths(text: str) -> list[str]:
    """Paths of files in a text that are not there."""
    return [path for path in PATH.findall(text) if not (ROOT / path).exists()]


@pytest.mark.parametrize("room", ROOMS)
def test_docstrings_and_comments_name_what_is_there(room: str) -> None:
    lost = [
        f"{source.module}: {name}"
        for source in sources().values()
        if source.module.partition(".")[0] == room
        for text in source.said()
        for name in [*NAME.findall(text), *lost_paths(text)]
        if "/" in name or not resolves(name, source)
    ]

    assert lost == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT / "docs")))
def test_a_page_names_what_is_there(page: Path) -> None:
    text = re.sub(r"\]\([^)]*\)", "]", page.read_text())  # links are the matter of test_docs
    begins = {*ROOMS, *members()}
    ours = [name for name in NAME.findall(text) if "." in name and name.partition(".")[0] in begins]

    assert [name for name in ours if not in_repository(name)] + lost_paths(text) == []
