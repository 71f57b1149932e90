"""Versions of sequences and interest states, sampled during a run: none may go back."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Final, Self

from infra.errors import StoreError
from infra.store import Version
from tests.chaos.scene import Scene

EVERY_S: Final = 0.25


class Sampler:
    """Looks at some users every now and then, in a thread of its own."""

    def __init__(self, scene: Scene, users: Sequence[str]) -> None:
        self.samples = 0
        self.went_back = 0
        """Versions that were older than the one seen before them."""
        self._scene = scene
        self._restored = 0
        self._users = users
        self._seen: dict[tuple[str, str], Version] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def look(self) -> None:
        """Take one sample; a store that cannot be read now is looked at later."""
        scene = self._scene
        try:
            with scene.reading() as store:
                found = store.profiles(self._users, scene.digest)
                if self._restored != scene.restored:  # an older store has older versions
                    self._restored = scene.restored
                    self._seen.clear()
        except StoreError:
            return
        for user, profile in zip(self._users, found, strict=True):
            if profile is not None:
                self._note("sequence", user, profile.version)
                self._note("interests", user, profile.interests_version)

    def _note(self, kind: str, user: str, version: Version | None) -> None:
        before = self._seen.get((kind, user))
        if version is None:
            self.went_back += before is not None
            return
        self.samples += 1
        self.went_back += before is not None and version < before
        self._seen[kind, user] = version

    def _run(self) -> None:
        while not self._ended.wait(EVERY_S):
            self.look()
