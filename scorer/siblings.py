"""What the processes of one scorer know of each other: a few numbers in memory that they share."""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import BaseContext
from typing import Final

AWAY: Final = -1
"""In the place of a process that accepts no connections."""


class Siblings:
    """The board on which each process of a scorer writes, and its supervisor."""

    def __init__(self, processes: int, context: BaseContext | None = None) -> None:
        context = context or multiprocessing.get_context()
        self.processes = processes
        self._open = context.RawArray("i", [AWAY] * processes)
        self._signals = context.RawValue("i", 0)
        self._reloads = context.RawValue("i", 0)

    def place(self, number: int) -> Place:
        """Where process ``number`` writes, counted from 0."""
        return Place(self, number)

    @property
    def signals(self) -> int:
        """How often the scorer as a whole has been told to stop."""
        signals: int = self._signals.value
        return signals

    def stop(self) -> None:
        """Note that the scorer as a whole has been told to stop, once more."""
        self._signals.value += 1

    @property
    def reloads(self) -> int:
        """How often the scorer as a whole has been told to look for a new bundle."""
        reloads: int = self._reloads.value
        return reloads

    def reload(self) -> None:
        """Note that the scorer as a whole has been told to look for a new bundle, once more."""
        self._reloads.value += 1

    def leave(self, number: int) -> None:
        """Note that process ``number`` accepts no connections, or is no more."""
        self._open[number] = AWAY

    def accepts(self, number: int, connections: int) -> None:
        """Note that process ``number`` accepts connections and has some open."""
        self._open[number] = connections

    def fewest(self, number: int) -> bool:
        """Whether no sibling of ``number`` that accepts connections has fewer open."""
        own = self._open[number]
        return not any(0 <= theirs < own for theirs in self._open)


class Place:
    """The place of one process among its siblings."""

    def __init__(self, siblings: Siblings, number: int) -> None:
        self._siblings = siblings
        self._number = number

    @property
    def alone(self) -> bool:
        """Whether there is no sibling, nor a supervisor."""
        return self._siblings.processes == 1

    @property
    def signals(self) -> int:
        """How often the scorer as a whole has been told to stop, as its supervisor says."""
        return self._siblings.signals

    @property
    def reloads(self) -> int:
        """How often the scorer as a whole has been told to look for a new bundle."""
        return self._siblings.reloads

    def reload(self) -> None:
        """Tell the scorer as a whole to look for a new bundle."""
        self._siblings.reload()

    @property
    def fewest(self) -> bool:
        """Whether no sibling that accepts connections has fewer open."""
        return self._siblings.fewest(self._number)

    def accepts(self, connections: int) -> None:
        """Tell the others that this process accepts connections, and how many it has open."""
        self._siblings.accepts(self._number, connections)

    def leave(self) -> None:
        """Tell the others that this process accepts no more connections."""
        self._siblings.leave(self._number)
