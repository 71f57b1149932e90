"""A running process takes the bundle that is put in the place of its own, without a restart.

`Reloader` looks at `bundle.path` every `bundle.poll_s` seconds, and when it is asked. What is found
there is loaded and verified as at the start, beside the bundle in service, which stays if anything
is wrong. Two bundles are in memory meanwhile, never three.
"""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from extractor.systems import load_system
from infra.errors import (
    BundleCorrupt,
    BundleIncompatible,
    BundleMissing,
    BundleUntrusted,
    SettingsError,
    typed_line,
)
from infra.metrics import BundleMetrics
from infra.settings import Settings
from infra.telemetry import get_logger
from models.bundle import Found, look

if TYPE_CHECKING:
    from extractor.system import System
    from models.bundle import Bundle

LET_GO_S: Final = 10.0
"""Time in which whoever uses the bundle before has to be done with it: several deadlines of a
request, or a batch of users."""

LOOK_S: Final = 0.1
"""How often it is looked whether they are."""

CLOSING_S: Final = 5.0
"""How long closing waits for a bundle that is being loaded."""

WHY: Final[tuple[tuple[type[Exception], str], ...]] = (
    (BundleMissing, "there is none"),
    (BundleCorrupt, "a file of it is damaged"),
    (BundleUntrusted, "it is not signed by those who are to sign it"),
    (BundleIncompatible, "it is not of this version, or does not compute what it should"),
    (SettingsError, "the settings do not go with it"),
)
"""Why a bundle is not taken, for those who need not know where it is."""

IN_USE: Final = "the bundle before is still in use; no other is loaded until it is let go"
"""Told where two bundles are in memory for longer than an exchange takes."""

Outcome = Literal["reloaded", "same", "waiting", "failed"]

log = get_logger(__name__)


class Reloaded(NamedTuple):
    """What became of a look at the directory."""

    outcome: Outcome
    """reloaded; same: it holds the bundle in service; waiting: it holds a part of another one, or
    of what is being exchanged; failed: another one, which cannot be used."""
    version: str
    """Of the bundle in service now."""
    reason: str | None = None
    """Why it is no other, in a line with paths; None: there is none, or it is another."""


class Reloader:
    """Follows the directory of a process's bundle. Thread-safe.

    Args:
        settings: those that the process was started with.
        bundle, system: in service. No reference to them is kept.
        adopt: warms a bundle and its system, and has them take the place of those in service; when
            it raises, they stay. Called in the thread of whoever looks.
        metrics: where it is counted.
        warn: told what a person should know of the bundle, without paths; None: nothing any more.
        load: as `extractor.systems.load_system`.
        look: as `models.bundle.look`.
        sleep: pauses while the bundle before is in use.
    """

    def __init__(
        self,
        settings: Settings,
        bundle: Bundle,
        system: System,
        adopt: Callable[[Bundle, System], None],
        metrics: BundleMetrics,
        warn: Callable[[str | None], None],
        *,
        load: Callable[[Settings], tuple[Bundle, System]] = load_system,
        look: Callable[[Path], Found] = look,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        assert settings.bundle.path is not None  # a bundle was loaded from there
        self._settings = settings
        self._path = settings.bundle.path
        self._digest = bundle.digest
        self._used = _references(bundle, system)
        self._before: tuple[weakref.ref[object], ...] = ()
        """What was in service before, and may be in use still."""
        self._lingers = False
        """Whether it was, longer than it should be."""
        self._adopt = adopt
        self._metrics = metrics
        self._warn = warn
        self._load = load
        self._look = look
        self._sleep = sleep
        self._seen: Found | None = None
        """At the last look."""
        self._told: Found | None = None
        """What the log has a line on."""
        self._failure: str | None = None
        """Why that cannot be used; None: it is not whole."""
        self._looking = threading.Lock()
        self._closing = threading.Event()
        # Its `put` may interrupt itself, in a handler of signals.
        self._asks: SimpleQueue[None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="reloading", daemon=True)

    def start(self) -> None:
        """Begin to look, in a thread of its own. Do this after any fork."""
        self._thread.start()

    def ask(self) -> None:
        """Have that thread look at once, as by `now`; returns before. For handlers of signals."""
        self._asks.put(None)

    def close(self) -> None:
        """Look no more."""
        self._closing.set()
        self._asks.put(None)
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(CLOSING_S)

    def now(self) -> Reloaded:
        """Take what the directory holds, if it is whole; what failed before is tried again. Takes
        as long as a start does, and never raises.
        """
        with self._looking:
            found = self._seen = self._look(self._path)
            self._told = None
            return self._judged(found)

    def poll(self) -> Reloaded:
        """Take what the directory holds, if it is as it was at the look before: a bundle that is
        being copied there changes.
        """
        with self._looking:
            before, found = self._seen, self._look(self._path)
            self._seen = found
            if found != before and found.digest != self._digest:
                self._metrics.bundle_pending.set(1)
                return self._waiting(f"{found.path} has changed since the look before")
            return self._judged(found)

    def _judged(self, found: Found) -> Reloaded:
        if found.digest == self._digest:
            self._settle()
            return Reloaded("same", self._digest.hex())
        self._metrics.bundle_pending.set(1)
        if found == self._told and self._failure is not None:
            return Reloaded("failed", self._digest.hex(), self._failure)
        if found.lacking is not None:
            self._tell_unfinished(found)
            return self._waiting(found.lacking)
        return self._reload(found)

    def _reload(self, found: Found) -> Reloaded:
        if not self._let_go():
            return self._waiting(IN_USE)
        began = time.monotonic()
        try:
            bundle, system = self._load(_with_path(self._settings, found))
            if self._look(self._path).digest != bundle.digest:
                # What was mapped may be of two bundles, though each file was verified.
                return self._waiting(f"{found.path} was exchanged while it was loaded")
            self._adopt(bundle, system)
        except Exception as error:  # noqa: BLE001  # whatever it is, the one in service stays
            if self._look(self._path) != found:
                return self._waiting(f"{found.path} was exchanged while it was loaded")
            return self._failed(found, error)
        self._before, self._used = self._used, _references(bundle, system)
        self._lingers = False
        before, self._digest = self._digest.hex(), bundle.digest
        self._metrics.bundle_reloads.labels("reloaded").inc()
        self._settle()
        log.info(
            "bundle exchanged",
            model=bundle.manifest.name,
            version=bundle.version,
            before=before,
            took_s=round(time.monotonic() - began, 3),
        )
        return Reloaded("reloaded", bundle.version)

    def _failed(self, found: Found, error: Exception) -> Reloaded:
        self._metrics.bundle_reloads.labels("failed").inc()
        self._told, self._failure = found, typed_line(error)
        why = next((why for kind, why in WHY if isinstance(error, kind)), "the log says why")
        version = "" if found.digest is None else f" {found.digest.hex()}"
        self._warn(f"the bundle{version} is not taken into service: {why}; the one before stays")
        log.warning(
            "bundle not exchanged, the one in service stays",
            path=str(found.path),
            version=version.strip(),
            in_service=self._digest.hex(),
            error=self._failure,
        )
        return Reloaded("failed", self._digest.hex(), self._failure)

    def _tell_unfinished(self, found: Found) -> None:
        if found == self._told:
            return
        self._told, self._failure = found, None
        self._warn("what is to follow the bundle in service is not whole yet, or is missing")
        log.info("bundle is not whole yet, the one in service stays", lacking=found.lacking)

    def _settle(self) -> None:
        """Note that the directory holds the bundle in service."""
        self._metrics.bundle_pending.set(0)
        self._told = self._failure = None
        self._lingers = self._lingers and not self._gone()
        self._warn(IN_USE if self._lingers else None)

    def _waiting(self, reason: str) -> Reloaded:
        return Reloaded("waiting", self._digest.hex(), reason)

    def _let_go(self) -> bool:
        """Whether nobody uses the bundle before any more, after some time if need be; if somebody
        does, a person should know.
        """
        for _ in range(int(LET_GO_S / LOOK_S)):
            if self._gone():
                return True
            self._sleep(LOOK_S)
        gc.collect()  # whatever refers to itself
        if self._gone():
            return True
        if not self._lingers:
            log.warning("bundle before is still in use", waited_s=LET_GO_S)
        self._lingers = True
        self._warn(IN_USE)
        return False

    def _gone(self) -> bool:
        return all(reference() is None for reference in self._before)

    def _run(self) -> None:
        poll_s = self._settings.bundle.poll_s or None  # never
        if poll_s is not None:
            poll_s = min(max(LOOK_S, poll_s), threading.TIMEOUT_MAX)
        while True:
            try:
                self._asks.get(timeout=poll_s)
                asked = True
            except Empty:
                asked = False
            if self._closing.is_set():
                return
            try:
                reloaded = self.now() if asked else self.poll()
                if reloaded.outcome == "reloaded":
                    self._let_go()
            except Exception:  # following must outlive any one failure
                log.exception("directory of the bundle was not looked at")


def _with_path(settings: Settings, found: Found) -> Settings:
    """The settings with the directory that was looked at: a link could lead to another by now."""
    bundle = settings.bundle.model_copy(update={"path": found.path})
    return settings.model_copy(update={"bundle": bundle})


def _references(bundle: Bundle, system: System) -> tuple[weakref.ref[object], ...]:
    return weakref.ref(bundle), weakref.ref(system)
