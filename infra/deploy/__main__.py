"""``python -m infra.deploy``: write again what is committed for Prometheus and Grafana."""

from __future__ import annotations

import argparse
from pathlib import Path

from infra.deploy.alerts import RUNBOOKS
from infra.deploy.files import files


def main() -> None:
    """Write all files, by default where they are committed."""
    parser = argparse.ArgumentParser(prog="python -m infra.deploy", description=__doc__)
    parser.add_argument(
        "--runbooks",
        default=RUNBOOKS,
        metavar="URL",
        help="where alerts say that the runbooks are: wherever your people can open docs/runbooks",
    )
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parents[2], metavar="DIR", help="where to write"
    )
    given = parser.parse_args()
    for place, text in files(given.runbooks).items():
        path = given.out / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


if __name__ == "__main__":
    main()
