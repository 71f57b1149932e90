"""What MkDocs does not do by itself, for the site of `mkdocs.yml`.

The pages at the top of the repository are pages of the site, and so is each source file that a page
links to. Formulas become MathML, and the diagram of the README a picture, so that the site needs no
script from elsewhere. Sections of the navigation that name a folder get what is in it.
"""

from __future__ import annotations

import html
import posixpath
import re
from pathlib import Path
from typing import Any, Final

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT: Final = Path(__file__).parents[2]
DOCS: Final = ROOT / "docs"
TOP: Final = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
}
"""Pages at the top of the repository, and where the site has them."""
DIAGRAM: Final = "![Clicks into sequences, interests and rankings](mkdocs/system.svg)"
"""In place of the one that GitHub draws, which takes a script."""

LINK: Final = re.compile(r"(\]\()(?!https?:|mailto:|#)([^)#\s]+)")
MERMAID: Final = re.compile(r"^```mermaid\n.*?^```$", re.DOTALL | re.MULTILINE)
MATH: Final = re.compile(r"^```math\n(.*?)^```$", re.DOTALL | re.MULTILINE)
INLINE: Final = re.compile(r"(?<![\\$`\w])\$([^$`\n]+(?:\n[^$`\n]+)?)\$(?![\w$])")
CELL: Final = re.compile(r"(?<=<td><code>)\w+(?=</code>)")
LANGUAGES: Final = {".py": "python", ".toml": "toml", ".yaml": "yaml", ".md": "markdown"}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill the folders of the navigation in."""
    config.nav = _filled(config.nav)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not below docs/."""
    for name, uri in TOP.items():
        files.append(File.generated(config, uri, content=(ROOT / name).read_text()))
    linked = {
        target
        for page in [*(ROOT / name for name in TOP), *DOCS.rglob("*.md")]
        for _, link in LINK.findall(page.read_text())
        if _is_source(target := (page.parent / link).resolve())
    }
    for target in sorted(linked):
        files.append(File.generated(config, _uri(target), content=_shown(target)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """A page as the site has it."""
    uri = page.file.src_uri
    if uri.startswith("source/"):
        return markdown
    name = next((name for name, there in TOP.items() if there == uri), f"docs/{uri}")
    place = (ROOT / name).parent

    def moved(found: re.Match[str]) -> str:
        target = (place / found[2]).resolve()
        if not target.is_relative_to(ROOT):
            return found[0]  # which MkDocs tells of
        return found[1] + posixpath.relpath(_uri(target), posixpath.dirname(uri) or ".")

    markdown = LINK.sub(moved, markdown)
    markdown = MERMAID.sub(DIAGRAM, markdown)
    if MATH.search(markdown):
        markdown = MATH.sub(lambda found: _mathml(found[1], "block"), markdown)
        markdown = INLINE.sub(lambda found: _mathml(found[1], "inline"), markdown)
    return markdown


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let long names in tables break where their words do."""
    return CELL.sub(lambda found: found[0].replace("_", "_<wbr>"), content)


def _filled(nav: Any) -> Any:
    if isinstance(nav, list):
        return [_filled(one) for one in nav]
    if isinstance(nav, dict):
        return {title: _filled(one) for title, one in nav.items()}
    return _listed(DOCS / nav) if nav.endswith("/") else nav


def _listed(folder: Path) -> list[Any]:
    """What a folder holds, its README first, and below that what its folders do."""
    pages = sorted(folder.glob("*.md"), key=lambda page: (page.name != "README.md", page.name))
    below = [
        {one.name: _listed(one)}
        for one in sorted(folder.iterdir())
        if one.is_dir() and any(one.glob("*.md"))
    ]
    return [*(page.relative_to(DOCS).as_posix() for page in pages), *below]


def _is_source(target: Path) -> bool:
    """Whether it is a file or a folder of the repository that is no page of the site."""
    return (
        target.exists()
        and target.is_relative_to(ROOT)
        and not target.is_relative_to(DOCS)
        and str(target.relative_to(ROOT)) not in TOP
    )


def _uri(target: Path) -> str:
    """Where the site has a file."""
    if target.is_relative_to(DOCS):
        inside = target.relative_to(DOCS).as_posix()
        return f"{inside}/README.md" if target.is_dir() else inside
    name = target.relative_to(ROOT).as_posix()
    return TOP.get(name, f"source/{name.replace('.', '-')}.md")


def _shown(target: Path) -> str:
    """The page of a source file, or of a folder."""
    name = target.relative_to(ROOT).as_posix()
    if target.is_dir():
        return f"# `{name}/`\n\n" + "\n".join(f"- `{one.name}`" for one in sorted(target.iterdir()))
    language = LANGUAGES.get(target.suffix, "text")
    return f"# `{name}`\n\n~~~~{language}\n{target.read_text()}\n~~~~\n"


def _mathml(latex: str, display: str) -> str:
    made = convert(latex.strip(), display=display)
    # What Markdown would take for its own.
    made = re.sub(r">([^<]*[*_][^<]*)<", lambda found: f">{_escaped(found[1])}<", made)
    return f"\n<div>{made}</div>\n" if display == "block" else f"<span>{made}</span>"


def _escaped(text: str) -> str:
    return html.unescape(text).replace("*", "&#42;").replace("_", "&#95;")
