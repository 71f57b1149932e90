"""The site has all pages, its links lead somewhere, and it takes nothing from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lifelong.reference import DOCS, pages

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", pages())
def test_a_page_that_is_made_from_code_is_as_the_code(name: str) -> None:
    assert (DOCS / name).read_text() == pages()[name], (
        "write it again: python -m lifelong.reference"
    )


def test_the_diagram_is_that_of_the_readme() -> None:
    readme, drawn = (ROOT / "README.md").read_text(), (DOCS / "mkdocs/system.svg").read_text()
    mermaid = readme.split("```mermaid\n")[1].split("```")[0]
    names = {name.split("<br/>")[0] for name in re.findall(r"[\[(/]([a-z][\w -]+)", mermaid)}

    assert {name for name in names if name.split(":")[0].split()[0] not in drawn} == set()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly: a link or an anchor that leads nowhere fails."""
    directory = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", directory],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    return directory


def test_the_site_takes_nothing_from_elsewhere(site: Path) -> None:
    """Fonts, scripts, styles and pictures are its own; links may lead away."""
    taken = re.compile(
        r"<(?:script|link|img|iframe|source)[^>]*?(?:src|href)=\"?(?:https?:)?//[^>]*>"
    )
    found = {tag for page in site.rglob("*.html") for tag in taken.findall(page.read_text())}
    styles = {
        url
        for sheet in site.rglob("*.css")
        for url in re.findall(r"(?:url\(|@import )['\"]?(?:https?:)?//[^)]*", sheet.read_text())
    }

    assert found | styles == set()


def test_every_page_of_the_repository_is_in_the_site(site: Path) -> None:
    sources = [page.relative_to(DOCS) for page in DOCS.rglob("*.md")]
    named = [
        page.with_name("index.html") if page.name == "README.md" else page.with_suffix(".html")
        for page in sources
    ]
    top = ["index.html", "contributing.html", "changelog.html", "security.html"]

    assert [page for page in [*map(str, named), *top] if not (site / page).is_file()] == []


def test_formulas_need_no_script(site: Path) -> None:
    page = (site / "models/encode.html").read_text()

    assert '<math xmlns="http://www.w3.org/1998/Math/MathML" display="block">' in page
    assert "$" not in re.sub(r"<(script|code|pre).*?</\1>", "", page, flags=re.DOTALL)
