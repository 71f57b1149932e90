"""Serves the double for whoever has no server: ``python -m tests.aerospike_double --port 3999``."""

from __future__ import annotations

import argparse
import pickle
import signal
import sys
from pathlib import Path

from .server import AerospikeDouble


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=3999)
    parser.add_argument("--delay-s", type=float, default=0.0, help="before every answer")
    parser.add_argument(
        "--keep", type=Path, help="file that has its records when it starts and after SIGTERM"
    )
    options = parser.parse_args()
    # No thread is to have it in the place of this one, which waits for it.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    double = AerospikeDouble()
    double.port, double.delay_s = options.port, options.delay_s
    if options.keep is not None and options.keep.exists():
        double.data = pickle.loads(options.keep.read_bytes())  # noqa: S301  # its own
    with double:
        sys.stdout.write(f"aerospike://{double.host}:{double.port}/{double.namespace}\n")
        sys.stdout.flush()
        signal.sigwait([signal.SIGTERM])
        double.go_away()
        if options.keep is not None:
            options.keep.write_bytes(pickle.dumps(double.data))


if __name__ == "__main__":
    main()
