"""``lifelong broker``: a local Kafka with our topics, until Ctrl-C."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Final

from infra.errors import SettingsError
from infra.kafka.admin import create_topic
from infra.kafka.local import Kind, LocalKafka
from infra.settings import BrokerSettings
from streaming.dead_letters import topic_settings

KINDS: Final[tuple[Kind, ...]] = ("auto", "apache", "mock")


def run_broker(settings: BrokerSettings, directory: Path, port: int, kind: str) -> None:
    """Start Kafka on 127.0.0.1, create both topics, and wait to be interrupted.

    Raises:
        BrokerError: it cannot be started; the message says why.
    """
    if kind not in KINDS:
        raise SettingsError(f"--kind {kind!r}: choose one of {', '.join(KINDS)}")
    with LocalKafka(directory, port, kind=kind) as kafka:
        bootstrap = kafka.bootstrap
        create_topic(bootstrap, settings.topic, settings.partitions)
        letters = topic_settings(settings)
        create_topic(bootstrap, settings.dead_letter_topic, settings.partitions, **letters)
        print(
            f"Kafka ({kafka.kind}) on {bootstrap}, topics {settings.topic} and"
            f" {settings.dead_letter_topic}; Ctrl-C ends it",
            file=sys.stderr,
        )
        signal.pause()
