"""Apache Kafka's jars, fetched once with Maven, and whether this machine can run them."""

from __future__ import annotations

import logging
import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

from infra.errors import BrokerError, one_line
from infra.program_cache import default_cache, fetch_once
from infra.telemetry import Log

KAFKA_VERSION: Final = "4.1.2"
JAVA_VERSION: Final = 17
"""Oldest Java that the Kafka above runs on."""

_SLF4J_VERSION: Final = "1.7.36"  # the slf4j-api that this Kafka is built against
_DEPENDENCY_PLUGIN: Final = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1"
_FETCH_TIMEOUT_S: Final = 600.0  # 43 MB; a slow line, not a dead one

_POM: Final = f"""\
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>lifelong</groupId>
  <artifactId>local-kafka</artifactId>
  <version>1</version>
  <packaging>pom</packaging>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId>
      <artifactId>kafka_2.13</artifactId>
      <version>{KAFKA_VERSION}</version>
    </dependency>
    <dependency>
      <groupId>org.slf4j</groupId>
      <artifactId>slf4j-simple</artifactId>
      <version>{_SLF4J_VERSION}</version>
    </dependency>
  </dependencies>
</project>
"""


def apache_obstacle(
    cache: Path | None = None, *, java: str = "java", maven: str = "mvn"
) -> str | None:
    """Why Apache Kafka cannot run on this machine, in one line; None where it can."""
    if shutil.which(java) is None:
        return f"there is no Java ({java}): install Java {JAVA_VERSION} or newer"
    try:
        answer = subprocess.run(
            [java, "-version"], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"Java does not run ({one_line(error)}): install Java {JAVA_VERSION} or newer"
    version = re.search(r'version "(\d+)', answer.stderr + answer.stdout)
    if answer.returncode != 0 or version is None:
        said = one_line(answer.stderr or answer.stdout, 100)
        return f"Java does not run ({said}): install Java {JAVA_VERSION} or newer"
    if int(version[1]) < JAVA_VERSION:
        return f"Java is too old ({version[0]}): install Java {JAVA_VERSION} or newer"
    fetched = ((cache or default_cache()) / f"kafka-{KAFKA_VERSION}").is_dir()
    if not fetched and shutil.which(maven) is None:
        return f"there is no Maven ({maven}) to fetch Kafka with: install Maven"
    return None


def fetch_kafka(cache: Path | None = None, *, maven: str = "mvn", log: Log | None = None) -> Path:
    """The folder with Apache Kafka's jars, fetched with Maven the first time (43 MB, about 6 s).

    Processes that do this at the same time wait for one of them. What is there is complete: the
    folder appears in one step.

    Raises:
        BrokerError: Maven is missing or failed, or the cache cannot be written.
    """
    cache = cache or default_cache()

    def fetch(folder: Path) -> Path:
        (log or logging.getLogger(__name__)).info(
            f"fetching Apache Kafka {KAFKA_VERSION} with Maven (43 MB, this once)"
        )
        return _run_maven(maven, folder)

    try:
        return fetch_once(cache / f"kafka-{KAFKA_VERSION}", fetch)
    except OSError as error:
        raise BrokerError(f"Kafka cannot be kept in {cache}: {one_line(error)}") from None


def _run_maven(maven: str, directory: Path) -> Path:
    """Let Maven put Kafka and all it needs into a folder in this one."""
    (directory / "pom.xml").write_text(_POM)
    jars = directory / "jars"
    command = [
        *(maven, "--batch-mode", "--strict-checksums", "-f", str(directory / "pom.xml")),
        f"{_DEPENDENCY_PLUGIN}:copy-dependencies",
        f"-DoutputDirectory={jars}",
        "-DincludeScope=runtime",
    ]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_FETCH_TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError:
        raise BrokerError(f"there is no Maven ({maven}) to fetch Kafka with: install it") from None
    except subprocess.TimeoutExpired:
        raise BrokerError(
            f"Maven has not fetched Kafka within {_FETCH_TIMEOUT_S:g} s: try again"
        ) from None
    if done.returncode != 0 or not (jars / f"kafka_2.13-{KAFKA_VERSION}.jar").is_file():
        said = (done.stdout + "\n" + done.stderr).splitlines()
        errors = [line.partition("[ERROR]")[2] for line in said if "[ERROR]" in line]
        reason = next(filter(str.strip, errors or said), f"exit status {done.returncode}")
        raise BrokerError(
            f"Maven could not fetch Kafka {KAFKA_VERSION} ({one_line(reason)}): is there a network?"
        )
    return jars
