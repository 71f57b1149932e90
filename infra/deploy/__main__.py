"""``python -m infra.deploy``: write again what is committed for Prometheus and Grafana."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

from infra.deploy.alerts import RUNBOOKS
from infra.deploy.files import HEAD, files
from infra.deploy.rules import RULES, rules
from infra.deploy.scaling import scaled
from infra.deploy.yaml import dump

ROOT: Final = Path(__file__).parents[2]


def main() -> None:
    """Write all files, by default where they are committed."""
    parser = argparse.ArgumentParser(prog="python -m infra.deploy", description=__doc__)
    parser.add_argument(
        "--runbooks",
        default=RUNBOOKS,
        metavar="URL",
        help="where alerts say that the runbooks are: wherever your people can open docs/runbooks",
    )
    parser.add_argument("--out", type=Path, default=ROOT, metavar="DIR", help="where to write")
    parser.add_argument(
        "--scale",
        type=float,
        metavar="BY",
        help="write nothing but the rules, with time so many times as fast, to try them out: by 60,"
        " windows and waits of an hour are a minute; needs --out",
    )
    given = parser.parse_args()
    if given.scale is None:
        wanted = files(given.runbooks)
    elif given.out == ROOT or given.scale <= 0:
        parser.error(
            "--scale: give a number above 0, and --out DIR: what is committed is not scaled"
        )
    else:
        wanted = {RULES: HEAD + dump(scaled(rules(given.runbooks), given.scale))}
    for place, text in wanted.items():
        path = given.out / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


if __name__ == "__main__":
    main()
