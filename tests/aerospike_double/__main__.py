"""Serves the double for whoever has no server: ``python -m tests.aerospike_double --port 3999``."""

from __future__ import annotations

import argparse
import sys
import threading

from .server import AerospikeDouble


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=3999)
    parser.add_argument("--delay-s", type=float, default=0.0, help="before every answer")
    options = parser.parse_args()
    double = AerospikeDouble()
    double.port, double.delay_s = options.port, options.delay_s
    with double:
        sys.stdout.write(f"aerospike://{double.host}:{double.port}/{double.namespace}\n")
        sys.stdout.flush()
        threading.Event().wait()


if __name__ == "__main__":
    main()
