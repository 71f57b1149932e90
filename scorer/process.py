"""One serving process of the scorer: a store client, a bundle and an event loop of its own.

Whoever imports this module gets numpy, numba and the HTTP server with it, some 70 MB; the
supervisor of several processes does not (`scorer.supervisor`).
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Final

from prometheus_client import CollectorRegistry

from extractor.reloading import Reloaded, Reloader
from extractor.system import System
from extractor.systems import load_system
from infra.compiling import tell_unkept
from infra.errors import LifelongError, StoreUnavailable, without_places
from infra.metrics import ScorerMetrics, new_registry
from infra.processes import orphaned
from infra.settings import Settings
from infra.store import Store
from infra.stores import open_store
from infra.stores.mending import counted
from infra.telemetry import get_logger
from infra.tracing import open_tracing
from models.bundle import Bundle
from scorer.access import Access, open_access
from scorer.http.admin import AdminServer, create_admin_app
from scorer.http.app import create_app
from scorer.http.gate import Gate
from scorer.http.serving import Companion, HttpServer
from scorer.ranking import Ranker
from scorer.readiness import Readiness
from scorer.sampling import Sampler
from scorer.service import Service
from scorer.siblings import Place, Siblings
from scorer.stopping import handling
from scorer.tls import TlsFiles
from scorer.turns import Turns

SWITCH_INTERVAL_S: Final = 0.0005
"""How long the ranking thread may keep the interpreter from the event loop, or the other way
round. With Python's default of 5 ms small rankings queued behind large ones took half as long
again (p95, four clients of B = 100 beside two of B = 3,000)."""

RETRY_STORE_S: Final = 1.0
"""Pause between two tries to open a store that is away at the start."""

ASK_USERS_S: Final = 60.0
"""How often a store in which somebody was found is looked through again for anybody: a server's
scan is no question for every second."""

log = get_logger(__name__)


class ScorerProcess:
    """One serving process: its own store client, bundle and event loop."""

    def __init__(self, settings: Settings, place: Place | None = None) -> None:
        """Make the process's parts; nothing is opened yet.

        Args:
            settings: of the scorer as a whole.
            place: the process's among its siblings; None: it has none.

        Raises:
            SettingsError: the files for TLS, or of keys, cannot be used; or what makes traces is
                not installed.
        """
        registry = new_registry()
        self._settings = settings
        self._metrics = ScorerMetrics(registry)
        self._degrades = settings.scorer.without_store == "degrade"
        self._service = Service(Readiness(self._metrics, degrades=self._degrades))
        self._store: Store | None = None
        self._sampler: Sampler | None = None
        self.reloader: Reloader | None = None
        """What follows the bundle's directory; None: the first bundle is not loaded yet."""
        self._place = place or Siblings(1).place(0)
        self._reloads = self._place.reloads
        """How often the scorer as a whole was told to look for a new bundle, and this did."""
        self._failure: Exception | None = None
        turns = Turns(
            settings.scorer.max_waiting, settings.scorer.deadline_s, metrics=self._metrics
        )
        access = open_access(settings.scorer, self._model_name)
        self._tls = TlsFiles(settings.scorer, self._metrics, self._warn_of_certificate)
        self._tracing = open_tracing(settings.tracing, "scorer", self._metrics.spans)
        gate = Gate(turns, self._metrics, access, traced=self._tracing is not None)
        self._server = HttpServer(
            create_app(
                self._service,
                settings.scorer,
                self._metrics,
                registry,
                gate,
                access,
                self._tracing,
            ),
            settings.scorer,
            self._place,
            on_stop=self._service.readiness.stopping,
            each_second=self._each_second,
            tls=self._tls.context(),
            gate=gate,
            companions=self._companions(registry, turns, access),
        )

    def load(self) -> None:
        """Open the store, load the bundle and warm everything, then begin to answer.

        Raises:
            LifelongError: see `run_scorer`.
        """
        bundle, system = load_system(self._settings)
        store = self._store = self._opened_store()
        ranker, self._sampler = self._made(store, bundle, system)
        self._metrics.use_bundle(bundle.version)
        self._service.serve(ranker, StoreQuestion(store))
        self.reloader = Reloader(
            self._settings, bundle, system, self._exchange, self._metrics, self._warn
        )
        self.reloader.start()
        tell_unkept()
        log.info(
            "scorer ready", model=bundle.manifest.name, version=bundle.version, pid=os.getpid()
        )

    def run(self, listener: socket.socket) -> None:
        """Serve until told to stop, loading meanwhile if `load` has not been called.

        Raises:
            LifelongError: see `run_scorer`.
        """
        switch_interval_s = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        if self._store is None:
            threading.Thread(target=self._load_or_stop, name="loading", daemon=True).start()
        try:
            with handling((signal.SIGHUP,), self._hang_up):
                self._server.run(sockets=[listener])
        finally:
            sys.setswitchinterval(switch_interval_s)
            if self.reloader is not None:
                self.reloader.close()
            self._service.close()
            if self._sampler is not None:
                self._sampler.close()
            if self._store is not None:
                self._store.close()
            if self._tracing is not None:
                self._tracing.close()
        if self._failure is not None:
            raise self._failure

    def _model_name(self) -> str:
        return self._service.ranker.bundle.manifest.name

    def _companions(
        self, registry: CollectorRegistry, turns: Turns, access: Access | None
    ) -> list[Companion]:
        """The servers of the ports beside the first."""
        settings = self._settings.scorer
        found: list[Companion] = []
        if settings.admin_port:
            admin = create_admin_app(
                settings, self._metrics, registry, access=access, reload=self._reload
            )
            found.append(AdminServer(admin, settings, self._tls.context(("http/1.1",))))
        if settings.grpc_port:
            # Its core logs lines of its own, no JSON, for what any client can send; what matters it
            # raises.
            os.environ.setdefault("GRPC_VERBOSITY", "NONE")
            # Not at the top: a scorer that speaks HTTP alone does without what this imports, 12 MB.
            from scorer.grpc.server import GrpcServer

            found.append(
                GrpcServer(
                    self._service,
                    settings,
                    self._metrics,
                    registry,
                    turns,
                    access,
                    self._tls,
                    self._tracing,
                )
            )
        return found

    def _made(self, store: Store, bundle: Bundle, system: System) -> tuple[Ranker, Sampler | None]:
        """A warm ranker, and what samples its requests, if anything does."""
        settings, sampler = self._settings.scorer, None
        if settings.sampled and system.measures:
            sampler = Sampler(store, system, self._metrics, settings.sampled)
        ranker = Ranker(
            store,
            bundle,
            system,
            self._metrics,
            degrade=self._degrades,
            unknown_items=settings.unknown_items,
            sampler=sampler,
        )
        if sampler is not None:
            sampler.start()
        return ranker, sampler

    def _exchange(self, bundle: Bundle, system: System) -> None:
        """Answer from another bundle from the next request on."""
        assert self._store is not None
        ranker, sampler = self._made(self._store, bundle, system)
        before, self._sampler = self._sampler, sampler
        self._service.replace(ranker)
        self._metrics.use_bundle(bundle.version)
        if before is not None:
            before.close()

    def _reload(self) -> Reloaded:
        """Take up the bundle that is in the directory, here now and in siblings within a second."""
        if self.reloader is None:
            raise LifelongError("the first bundle is being loaded yet; come again")
        told = self.reloader.now()
        self._place.reload()
        self._reloads = self._place.reloads
        return told

    def _warn(self, what: str | None) -> None:
        self._service.readiness.bundle_warning = what

    def _warn_of_certificate(self, what: str | None) -> None:
        self._service.readiness.certificate_warning = what

    def _hang_up(self, _sig: int, _frame: FrameType | None) -> None:
        if self.reloader is not None:
            self.reloader.ask()

    def _load_or_stop(self) -> None:
        try:
            self.load()
        except Exception as error:  # noqa: BLE001  # it is raised again where `run` returns
            if not self._server.should_exit:
                self._failure = error
            self._server.should_exit = True

    def _opened_store(self) -> Store:
        while True:
            try:
                return open_store(
                    self._settings.store,
                    read_only=True,
                    wait_s=0,
                    timeout_s=self._settings.scorer.store_timeout_s,
                    actions=self._settings.events.declared_actions.names,
                    damage=counted(self._metrics.store_damage),
                )
            except StoreUnavailable as error:
                self._service.readiness.waits_for(
                    f"the store does not answer: {without_places(error)}"
                )
                log.warning("store is away, trying again", error=str(error))
                time.sleep(RETRY_STORE_S)
                if orphaned():
                    raise

    async def _each_second(self) -> None:
        """Keep the readiness gauge true where no probe asks, look for another certificate, and for
        a new bundle when the supervisor says so, and end with it.
        """
        await self._service.readiness.reason()
        self._tls.look()
        if self.reloader is not None and self._reloads != self._place.reloads:
            self._reloads = self._place.reloads
            self.reloader.ask()
        if orphaned():
            self._server.should_exit = True


class StoreQuestion:
    """What readiness asks of the store: whether it answers, and whether anybody is in it."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._empty = True
        self._ask_users_at = 0.0

    def __call__(self) -> str | None:
        """What is odd about the store; None: nothing."""
        self._store.ping()
        if self._empty or self._clock() >= self._ask_users_at:
            self._empty = self._store.empty()
            self._ask_users_at = self._clock() + ASK_USERS_S
        if not self._empty:
            return None
        return "the store has no users: everybody is scored as a stranger; is it the right one?"
