"""Round trips, counted: commands are let in by as many as are to be in flight together."""

from __future__ import annotations

import threading
from typing import Final

PATIENCE_S: Final = 10.0
"""How long commands wait for those that are to be in flight with them."""


class Gate:
    """Lets the first ``sizes[0]`` commands in once all of them are there, then ``sizes[1]``, and so
    on: a client that sends one of them only after another's answer is stuck, which is told. Once
    all have passed, as many round trips were made as there are sizes; what comes then is counted.
    """

    def __init__(self, *sizes: int) -> None:
        self._sizes = sizes
        self._changed = threading.Condition()
        self._trip = 0
        self._arrived = 0
        self._stuck = ""
        self._beyond = 0

    def arrive(self) -> None:
        """Wait to be let in."""
        with self._changed:
            mine = self._trip
            if mine == len(self._sizes):
                self._beyond += 1
                return
            self._arrived += 1
            if self._arrived == self._sizes[mine]:
                self._open()
            elif not self._changed.wait_for(lambda: self._trip > mine, PATIENCE_S):
                wanted = self._sizes[mine]
                self._stuck = f"{self._arrived} of {wanted} commands in round trip {mine + 1}"
                self._open()

    @property
    def passed(self) -> str:
        """What came, in words: ``3 round trips``, if it is as it should be."""
        with self._changed:
            if self._stuck:
                return self._stuck
            found = f"{self._trip} round trips"
            if self._arrived:
                found += f" and {self._arrived} commands"
            if self._beyond:
                found += f", {self._beyond} commands more"
            return found

    def _open(self) -> None:
        self._trip += 1
        self._arrived = 0
        self._changed.notify_all()
