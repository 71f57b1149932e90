"""How every figure of this project looks, and how it becomes files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from io import BytesIO
from pathlib import Path
from textwrap import wrap
from typing import Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure
from PIL import Image  # matplotlib needs it too

from infra.errors import SettingsError
from infra.files import reason, replacing

INK: Final = "#1f2933"
GRAY: Final = "#7b8794"
PALE: Final = "#cbd2d9"
GRID: Final = "#eef1f4"
BLUE: Final = "#1f6feb"
LIGHT_BLUE: Final = "#9ec1f7"

DASHED: Final = (0, (4, 3))

COLORS: Final = 128
"""Colors of a PNG: a chart has few, and its file is a third as large."""

SMALL: Final = 9.5
"""Size of the lines below a title, in points."""

_STYLE: Final[dict[Any, Any]] = {
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": PALE,
    "axes.labelcolor": INK,
    "axes.formatter.useoffset": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": GRAY,
    "ytick.color": GRAY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "svg.fonttype": "none",  # letters as letters: a tenth of the size
    "svg.hashsalt": "lifelong",  # the same figures give the same file
}


def styled() -> AbstractContextManager[None]:
    """A context in which figures are made, and written, in this style."""
    return mpl.rc_context(_STYLE)


def head(figure: Figure, title: str, below: str) -> None:
    """A title at the upper left of a figure, and gray lines under it, broken where they must."""
    width, height = figure.get_size_inches()
    room = (width - 0.24) * 72
    fitting = int(room / (0.52 * SMALL))
    below = "\n".join(line for part in below.splitlines() for line in wrap(part, fitting))
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.1)
    # The layout keeps room for a "suptitle" alone: its first line is empty, for the title.
    lines = figure.suptitle(
        f"\n{below}", x=0.12 / width, ha="left", fontsize=SMALL, color=GRAY, linespacing=1.4
    )
    lines.set_in_layout(True)
    figure.text(
        0.12 / width,
        1 - 0.1 / height,
        title,
        va="top",
        fontsize=min(12.5, room / (0.66 * len(title))),
        fontweight="bold",
        color=INK,
    ).set_in_layout(False)


def save(
    figures: Mapping[str, Figure],
    directory: Path,
    option: str,
    endings: Sequence[str] = ("png", "svg"),
    thin: bool = False,
) -> list[str]:
    """Write figures by their names, as PNG to look at and SVG to print; the files that were made.

    Args:
        figures: by their names.
        directory: where.
        option: of a command that names it.
        endings: what is wanted of both.
        thin: whether thin lines are told apart by color, which a PNG is then to keep.

    Raises:
        SettingsError: they cannot be written where ``option`` of a command says.
    """
    written = []
    try:
        for name, figure in figures.items():
            for ending in endings:
                path = directory / f"{name}.{ending}"
                encoded = _encoded(figure, ending, thin)
                with replacing(path) as file:
                    file.write(encoded)
                written.append(str(path))
    except OSError as error:
        raise SettingsError(
            f"{option} {directory}: cannot be written ({reason(error)}); name a directory that is"
            " writable"
        ) from error
    return written


def _encoded(figure: Figure, ending: str, thin: bool) -> bytes:
    """The file's bytes; the same for the same figure."""
    drawn, file = BytesIO(), BytesIO()
    with styled():
        if ending == "svg":
            figure.savefig(file, format="svg", metadata={"Date": None})
            return file.getvalue()
        figure.savefig(drawn, format="png", dpi=120)
    picture = Image.open(drawn).convert("RGB")
    if thin:
        reduced = picture.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    else:
        reduced = picture.quantize(COLORS, dither=Image.Dither.NONE)
    reduced.save(file, "PNG", optimize=True)
    return file.getvalue()
