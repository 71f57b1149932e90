"""What the workers said of events that Kafka destroyed before they were read."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Final

from tests.chaos.ledger import CAUSES

GONE: Final = "events are gone from Kafka before they were read"
"""What a worker's line says."""


def reported_lost(lines: Iterable[str]) -> dict[str, int]:
    """How many events they report, by cause."""
    total = dict.fromkeys(CAUSES, 0)
    for line in lines:
        if GONE in line:
            said = json.loads(line)
            total[said["cause"]] = total.get(said["cause"], 0) + said["count"]
    return total
