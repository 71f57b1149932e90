"""A Prometheus on this machine, for as long as a program needs one, with our rules and jobs.

with LocalPrometheus(directory, rules(), {WORKER_JOB: ["127.0.0.1:9101"]}, port=9090) as it:
    ask(it.url, "up", span)
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, Self

from infra.deploy.rules import RULES
from infra.deploy.yaml import dump
from infra.errors import PrometheusError, one_line
from infra.processes import die_with_parent

READY_S: Final = 30.0
"""Longest wait for its start."""

STOP_S: Final = 10.0
"""It writes what it has within this; then it is killed."""

LOOKBACK_S: Final = 5
"""How long a series is thought to go on after its last sample. By default it is five minutes, for
scrapes a minute apart; here they are a second apart."""


def obstacle(command: str = "prometheus") -> str | None:
    """Why it cannot run on this machine, in one line; None where it can."""
    if shutil.which(command) is None:
        return f"there is no {command}: apt-get install --no-install-recommends prometheus"
    return None


class LocalPrometheus:
    """A Prometheus that listens on 127.0.0.1 and ends with its owner, however that ends.

    Args:
        directory: takes its settings, its data and what it says; made if it is not there. Data that
            is there is taken along.
        rules: as `infra.deploy.rules.rules` has them.
        targets: HOST:PORT of what is scraped, by job.
        port: to listen on.
        scrape_s: from one scrape to the next, and from one evaluation of the rules; whole seconds.
    """

    def __init__(
        self,
        directory: Path,
        rules: Mapping[str, Any],
        targets: Mapping[str, Sequence[str]],
        *,
        port: int,
        scrape_s: int = 1,
    ) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._directory = directory
        self._rules = rules
        self._config = config(targets, scrape_s)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def data(self) -> Path:
        """Where its blocks are."""
        return self._directory / "data"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start it and wait until it answers.

        Raises:
            PrometheusError: it did not start; nothing is left running.
        """
        if (missing := obstacle()) is not None:
            raise PrometheusError(f"Prometheus cannot run here: {missing}")
        self._directory.mkdir(parents=True, exist_ok=True)
        (self._directory / RULES).write_text(dump(self._rules))
        (self._directory / "prometheus.yaml").write_text(dump(self._config))
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    "prometheus",
                    "--config.file=prometheus.yaml",
                    "--storage.tsdb.path=data",
                    f"--web.listen-address={self.url.removeprefix('http://')}",
                    f"--query.lookback-delta={LOOKBACK_S}s",
                    "--log.level=warn",
                ],
                cwd=self._directory,
                # It is a guest here: its many threads of Go are one processor's.
                env={**os.environ, "GOMAXPROCS": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for us
                # Safe here: the child only makes a system call before it becomes the command.
                preexec_fn=partial(die_with_parent, signal.SIGTERM),  # noqa: PLW1509
            )
        try:
            self._wait_ready(self._process)
        except BaseException:  # Ctrl-C too leaves no process behind
            self.stop()
            raise

    def stop(self) -> None:
        """End it: asked first, killed after `STOP_S`; nothing happens where none runs."""
        if self._process is None:
            return
        process, self._process = self._process, None
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
            return
        process.kill()
        process.wait()

    @property
    def _log(self) -> Path:
        return self._directory / "prometheus.log"

    def _wait_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            if process.poll() is not None:
                said = self._log.read_text(errors="replace").strip().splitlines() or ["nothing"]
                raise PrometheusError(f"Prometheus ended while starting: {one_line(said[-1])}")
            with (
                suppress(OSError, urllib.error.URLError),
                urllib.request.urlopen(f"{self.url}/-/ready", timeout=1),  # noqa: S310 - ours
            ):
                return
            time.sleep(0.05)
        raise PrometheusError(f"Prometheus does not answer at {self.url} within {READY_S:g} s")


def config(targets: Mapping[str, Sequence[str]], scrape_s: int) -> dict[str, Any]:
    """Its settings."""
    often = f"{scrape_s}s"
    return {
        "global": {
            "scrape_interval": often,
            "scrape_timeout": often,
            "evaluation_interval": often,
        },
        "rule_files": [RULES],
        "scrape_configs": [
            {"job_name": job, "static_configs": [{"targets": list(of)}]}
            for job, of in targets.items()
        ],
    }
