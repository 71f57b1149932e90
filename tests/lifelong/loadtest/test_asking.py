"""Rankings that are due, asked of a server that never answers."""

from __future__ import annotations

import asyncio
import socket

import numpy as np

from lifelong.loadtest.asking import OUTRUN, UNDER_WAY, ask_all
from scorer.client import AsyncRankClient


def test_what_cannot_be_sent_in_time_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=1) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        timeout_s = 0.5

        async def ask() -> dict[int, str]:
            client = AsyncRankClient(url, timeout_s)
            due = np.zeros(2 * UNDER_WAY)
            rng = np.random.default_rng(1)
            asked = await ask_all([client], due, 1.0, ["ann"], [["22423"]], rng, timeout_s)
            assert asked.errors == 1
            assert int((asked.sent > timeout_s).sum()) >= UNDER_WAY // 2
            return asked.said

        said = asyncio.run(ask())

    assert set(said) == {0}
    assert said[0] == OUTRUN or "has not answered" in said[0]
