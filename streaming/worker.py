"""The worker process: behaviors from Kafka into sequences, and sequences into fresh interests.

`run_worker` is the command; `Worker` is its inside, composed of parts that are given to it. Nothing
here keeps state that matters: a worker can be killed at any moment, and another goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import mode.loop
from faust.types import TP

from infra.behaviors import partition_owner
from infra.errors import (
    BrokerError,
    StoreFull,
    StoreUnavailable,
    typed_line,
)
from infra.kafka.admin import (
    create_topic,
    require_topic,
    topic_id,
    topic_partitions,
    unread_partitions,
)
from infra.metrics import WorkerMetrics, new_registry
from infra.schema_registry import SchemaRegistry
from infra.settings import BrokerSettings, Settings
from infra.store import Store, wall_clock_ms
from infra.stores.mending import counted
from infra.telemetry import configure_logging, get_logger
from streaming.app import LifelongApp, create_app
from streaming.dead_letters import DeadLetters, KafkaDeadLetters, topic_settings
from streaming.events.decoder import EventDecoder
from streaming.health import Health, serve_health
from streaming.interruptions import Interruptions
from streaming.renewal import Renewal
from streaming.schedule import Reclusterer
from streaming.traces import WorkerTraces, open_traces
from streaming.transport import NO_ANSWER, BatchConsumer

if TYPE_CHECKING:
    from extractor.reloading import Reloader
    from extractor.system import System
    from models.bundle import Bundle

log: Final = get_logger(__name__)

LOOK_S: Final = 0.5
"""How often health is judged."""

AGAIN_S: Final = 1.0
"""Pause before a part that is away is tried again, at the start and after a crash."""

PING_S: Final = 10.0
"""Time within which a store has to answer whether it takes writes. Longer than the five seconds of
each of its calls, since its own errors say more."""

ROOM_S: Final = 15.0
"""How often the store is asked how full it is."""

GROUP_S: Final = 15.0
"""How often it is asked whether each partition is somebody's: what is nobody's twice in a row is
not just being shared out."""

DEAF_MS: Final = 30_000
"""Time after which a consumer that gets no answers, though another client of the same brokers does,
is given up. Brokers hold no answer back as long, and an election takes less."""

CALM_S: Final = 10.0
"""How long a consumer that crashed must run before it is taken for sound again."""

STOP_S: Final = 8.0
"""Time for a clean stop of Faust; what it leaves undone is safe to leave."""

END_S: Final = 15.0
"""Time from being asked to end until the process leaves, whatever it waits for: a clean stop of
Faust and some seconds for the transaction in hand, within the half minute that is usual before a
process is killed. A write may wait for ever, for a lock that a stopped process holds; left, it is
undone, and its events come again."""

COLLECT: Final = (200_000, 10, 100)
"""Python's thresholds for looking for reference cycles: objects made since the last look, then how
many looks at the young make one at the older."""

# They report each failed connection and each late timer, for as long as the broker is away. Our
# line says it once.
QUIET: Final = {
    "aiokafka": logging.CRITICAL,
    "streaming.dead_letters.client": logging.CRITICAL,
    "faust": logging.ERROR,
    "mode": logging.ERROR,
}

T = TypeVar("T")


def prepare_topics(settings: Settings) -> list[TP]:
    """See to it that the topics are there; the partitions of the behaviors', in their order.

    Raises:
        BrokerError: the broker does not answer, or a topic is not there and is not to be made.
    """
    brokers = [one.broker for one in settings.readers()]
    wanted = {topic: one for one in brokers for topic in (one.topic, one.dead_letter_topic)}
    for topic, broker in wanted.items():
        if broker.create_topics:
            _ensure_topic(broker, topic)
        else:
            require_topic(broker, topic)
    return [
        TP(topic, number)
        for topic in sorted(one.topic for one in brokers)
        for number in range(topic_partitions(settings.broker, topic))
    ]


class Worker:
    """One worker of the group, made of given parts; `run` it.

    Args:
        settings: all of them.
        store: sequences and interests; closed by whoever opened it.
        system: makes interest states.
        dead_letters: takes what cannot be read.
        metrics: where all of it is counted.
        health: kept true, for the endpoints to tell.
        interruptions: told of the store's outages by whoever opened it.
        traces: what makes spans; None: nothing does.
        prepare: sees to it that the topics are there, and tells the partitions of the behaviors',
            in one order for all workers; `BrokerError` where it cannot.
        create: makes a consumer, as `create_app` does.
        clock: ms since epoch.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        system: System,
        dead_letters: DeadLetters,
        metrics: WorkerMetrics,
        health: Health,
        interruptions: Interruptions | None = None,
        *,
        traces: WorkerTraces | None = None,
        prepare: Callable[[Settings], list[TP]] = prepare_topics,
        create: Callable[..., LifelongApp] = create_app,
        clock: Callable[[], int] = wall_clock_ms,
    ) -> None:
        self._settings = settings
        self._store = store
        self._dead_letters = dead_letters
        self._app: LifelongApp | None = None
        self._running = False
        self._ours: set[TP] = set()
        self._digest = system.digest if system.keeps_state else None
        self._metrics = metrics
        self._health = health
        self._interruptions = interruptions or Interruptions()
        self._of_states = self._interruptions.follower()
        self._traces = traces
        # By the clock of whoever asks, as the endpoint tells it: the loop may be stuck.
        metrics.live.set_function(health.alive)
        metrics.ready.set_function(health.ready)
        self._lively = True
        self._crashed_at = -math.inf
        self._prepare = prepare
        self._create = create
        self._clock = clock
        self._partitions: list[TP] = []
        self._reclusterer, self._renewal = self._made(system)

    async def run(self, stop: asyncio.Event) -> None:
        """Work until ``stop`` is set, whatever goes away and comes back meanwhile."""
        checks = [
            asyncio.create_task(check)
            for check in (
                check_store(self._store, self._health, self._settings.worker.check_s),
                measure_room(self._store, self._metrics),
            )
        ]
        self._running = True
        self._reclusterer.start()
        self._renewal.start()
        try:
            while not stop.is_set():
                partitions = await _retried(
                    lambda: self._prepare(self._settings), "broker", self._health, stop
                )
                if partitions is None:
                    break
                self._partitions = partitions
                await self._run_app(stop)
        finally:
            self._running = False
            for check in checks:
                check.cancel()
            self._health.stopping()
            await asyncio.to_thread(self._renewal.stop)
            await asyncio.to_thread(self._reclusterer.stop)

    async def exchange(self, system: System) -> None:
        """Make states of another bundle from now on, as after a restart with it: of users who
        become due, and of all others in the background. Returns when those of the one before are
        written. Nothing happens where the worker does not run.
        """
        self._digest = system.digest if system.keeps_state else None
        if self._app is not None:
            await self._app.writer.make_due_for(self._digest)
        if not self._running:
            return
        before = self._renewal, self._reclusterer
        self._reclusterer, self._renewal = self._made(system)
        self._share_out()
        self._reclusterer.start()
        self._renewal.start()
        for part in before:
            await asyncio.to_thread(part.stop)
        if not system.keeps_state:
            self._metrics.renewal_partitions.set(0)

    def _made(self, system: System) -> tuple[Reclusterer, Renewal]:
        """What makes states of a bundle."""
        settings = self._settings.worker
        renewal = Renewal(
            self._store,
            system,
            self._metrics,
            per_second=settings.renew_per_s,
            again_s=settings.renew_again_s,
            clock=self._clock,
        )
        reclusterer = Reclusterer(
            self._store,
            system,
            settings,
            self._metrics,
            self._clock,
            self._traces,
            None if self._store.local else self._of_states,
        )
        return reclusterer, renewal

    async def _run_app(self, stop: asyncio.Event) -> None:
        """Run the Faust app until ``stop``, or until it crashes: then a new one goes on."""
        broker = self._settings.broker
        app = self._create(
            self._settings,
            self._store,
            self._dead_letters,
            self._metrics,
            topic_id=partial(topic_id, broker, timeout_s=2 * self._settings.worker.check_s),
            digest=self._digest,
            interruptions=self._interruptions,
            traces=self._traces,
            on_assigned=self._take_partitions,
            clock=self._clock,
        )
        self._app = app
        checks = [
            asyncio.create_task(check)
            for check in (self._check_broker(app), self._check_group(app))
        ]
        try:
            if await _unless(stop, app.start()):
                self._health.cleared("start")
            while not stop.is_set() and app.crash_reason is None and not app.should_stop:
                self._judge(app)
                await _wait_at_most(stop.wait(), LOOK_S)
            if app.crash_reason is not None:
                self._crashed("consumer crashed, starting it again", app.crash_reason)
        except Exception as error:  # noqa: BLE001 - a consumer that cannot start is tried again
            self._crashed("consumer did not start, trying again", error)
        finally:
            for check in checks:
                check.cancel()
            await _stop_app(app)
            self._app = None
        if not stop.is_set():
            await _wait_at_most(stop.wait(), AGAIN_S)

    def _crashed(self, what: str, error: BaseException) -> None:
        log.error(what, error=typed_line(error))
        self._metrics.consumer_failures.inc()
        self._crashed_at = time.monotonic()
        self._health.blocked("consumer", typed_line(error))

    def _judge(self, app: LifelongApp) -> None:
        """Bring health up to date with every part's signs of life."""
        health, progress = self._health, app.writer.progress
        consumer = app.consumer
        polled = consumer.polled_at if isinstance(consumer, BatchConsumer) else 0.0
        # The fetcher waits for a full queue, and the agent for events: either one moving is
        # enough, and none is to blame while the broker is away.
        moved = max(polled, progress.moved_at)
        if "broker" in health.obstacles:
            moved = time.monotonic()
        if self._reclusterer.alive:
            health.seen_at = max(health.seen_at, moved)
        if self._lively and not health.alive():
            log.error("no progress, reported as not live", stall_s=health.stall_s)
        self._lively = health.alive()
        self._judge_parts(app)

    def _judge_parts(self, app: LifelongApp) -> None:
        """Bring up to date what keeps the worker from being ready."""
        health, progress = self._health, app.writer.progress
        # The writer logs its failures itself, and the group takes a moment to join.
        silent = {"writing": progress.failure, "decoding": progress.unread}
        silent["group"] = None if progress.assigned else "not joined yet"
        obstacles = {part: why for part, why in health.obstacles.items() if part not in silent}
        health.obstacles = obstacles | {part: why for part, why in silent.items() if why}
        found = app.batch_agent.obstacles()
        if (trouble := self._reclusterer.trouble()) is not None:
            found["reclustering"] = trouble
        for part in obstacles:
            judged = part in {"reclustering", "writer"} or part.startswith("partition ")
            if judged and part not in found:
                health.cleared(part)
        if time.monotonic() - self._crashed_at > CALM_S:
            health.cleared("consumer")
        for part, why in found.items():
            health.blocked(part, why)

    async def _check_broker(self, app: LifelongApp) -> None:
        """Keep asking whether the broker answers, and how far its logs go.

        Another client asks first. A consumer that gets no answers where that one does is given up,
        and the next one is made in its place: the process, its kernels and what it extracts are
        sound, and would take longer to start again.
        """
        deaf_since_ms: int | None = None
        while True:
            await asyncio.sleep(self._settings.worker.check_s)
            asked_ms = self._clock()
            try:
                await app.batch_agent.check()
            except NO_ANSWER:
                self._health.blocked("broker", "does not answer the consumer")
                deaf_since_ms = asked_ms if deaf_since_ms is None else deaf_since_ms
                if self._clock() - deaf_since_ms >= DEAF_MS:
                    app.crash_reason = BrokerError(
                        "the consumer gets no answers, another client does"
                    )
            except Exception as error:  # noqa: BLE001 - whatever it is, it is asked again
                self._health.blocked("broker", typed_line(error))
                deaf_since_ms = None
            else:
                self._health.cleared("broker")
                deaf_since_ms = None

    async def _check_group(self, app: LifelongApp) -> None:
        """Keep asking whether each partition is somebody's: who shares them out may not have heard
        of those that were added.
        """
        broker, before = self._settings.broker, set[tuple[str, int]]()
        names = [one.broker.topic for one in self._settings.readers()]
        while True:
            await asyncio.sleep(GROUP_S)
            try:
                unread = await asyncio.to_thread(unread_partitions, broker, names, broker.group)
                await app.batch_agent.left_unread(unread & before)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is asked again
                log.info("group not known", error=typed_line(error))
            else:
                before = unread

    def _take_partitions(self, partitions: set[TP]) -> None:
        self._ours = partitions
        self._share_out()

    def _share_out(self) -> None:
        """Tell whose users are ours."""
        self._reclusterer.set_owners({partition_owner(*tp) for tp in self._ours})
        self._renewal.set_partitions(self._ours, self._partitions)


async def check_store(
    store: Store, health: Health, pause_s: float, budget_s: float = PING_S
) -> None:
    """Keep asking whether the store takes writes, whether events come or not.

    One that has not answered within ``budget_s`` is away; it is not asked again before it has.
    """
    while True:
        ping = asyncio.ensure_future(asyncio.to_thread(store.ping))
        await asyncio.wait((ping,), timeout=budget_s)
        if not ping.done():
            health.blocked("store", f"has not answered for {budget_s:g} s")
        try:
            await ping
        except Exception as error:  # noqa: BLE001 - whatever it is, it is asked again
            health.blocked("store", typed_line(error))
        else:
            health.cleared("store")
        await asyncio.sleep(pause_s)


async def measure_room(store: Store, metrics: WorkerMetrics, pause_s: float = ROOM_S) -> None:
    """Keep telling how full the store is; while it does not say, nothing."""
    while True:
        try:
            metrics.store_room(await asyncio.to_thread(store.room))
        except Exception as error:  # noqa: BLE001 - `check_store` tells of a store that is away
            metrics.store_room(None)
            log.debug("room of the store not known", error=typed_line(error))
        await asyncio.sleep(pause_s)


def run_worker(settings: Settings) -> None:
    """Be a worker until SIGTERM or SIGINT.

    Waits for a store or a broker that is not there yet, and goes on when one goes away and comes
    back.

    Raises:
        SettingsError: an address cannot be listened on, the store's URL is wrong, or what makes
            traces is not installed.
        BundleError: the bundle cannot be used.
    """
    configure_logging(settings.log)
    if settings.log.level != "DEBUG":
        for name, level in QUIET.items():
            logging.getLogger(name).setLevel(level)
    # For the consumer's own thread too, which makes its loop from the policy.
    mode.loop.use("uvloop")
    asyncio.run(_serve(settings))


async def _serve(settings: Settings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _end, stop)
    _on_hang_up(loop, lambda: None)  # what is loaded first is what is there then
    registry = new_registry()
    metrics = WorkerMetrics(registry)
    health = Health(settings.worker.stall_s)
    traces = open_traces(settings, metrics)
    # From the start, as the endpoint: who loads a bundle lives.
    metrics.live.set_function(health.alive)
    with serve_health(settings, registry, health):
        bundle, system = await asyncio.to_thread(_load_system, settings, metrics)
        interruptions = Interruptions()
        store = await _retried(
            lambda: _open_store(settings, metrics, interruptions), "store", health, stop
        )
        if store is None:
            return
        brokers = [one.broker for one in settings.readers()]
        dead_letters = KafkaDeadLetters(
            settings.broker, {one.topic: one.dead_letter_topic for one in brokers}
        )
        worker = Worker(
            settings, store, system, dead_letters, metrics, health, interruptions, traces=traces
        )
        reloader = _reloader(worker, settings, bundle, system, metrics, health)
        del bundle, system  # the worker's now, until it is given others
        _collect_less()
        reloader.start()
        _on_hang_up(loop, reloader.ask)
        try:
            await worker.run(stop)
        finally:
            await asyncio.to_thread(reloader.close)
            dead_letters.close()
            store.close()
            if traces is not None:
                await asyncio.to_thread(traces.close)
    log.info("worker stopped")
    # A thread may wait for ever for a broker that is gone, and the process with it; all that
    # matters is in the store.
    _in(STOP_S, os._exit, 0)


def _reloader(
    worker: Worker,
    settings: Settings,
    bundle: Bundle,
    system: System,
    metrics: WorkerMetrics,
    health: Health,
) -> Reloader:
    """What has a worker of this loop follow the bundle's directory."""
    # Not at the top: it imports numerical libraries, which are there by now.
    from extractor.reloading import Reloader

    loop = asyncio.get_running_loop()

    def adopt(bundle: Bundle, system: System) -> None:
        system.warm()
        asyncio.run_coroutine_threadsafe(worker.exchange(system), loop).result()
        metrics.use_bundle(bundle.version)

    return Reloader(settings, bundle, system, adopt, metrics, partial(health.warned, "bundle"))


def _on_hang_up(loop: asyncio.AbstractEventLoop, call: Callable[[], object]) -> None:
    """Call something at SIGHUP, unless whoever started the process has it ignored (nohup)."""
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        loop.add_signal_handler(signal.SIGHUP, call)


def _end(stop: asyncio.Event) -> None:
    stop.set()
    _in(END_S, _leave)


def _leave() -> None:
    log.warning("left before all was stopped, what was not stored comes again", waited_s=END_S)
    os._exit(0)


def _in(seconds: float, call: Callable[..., object], *arguments: object) -> None:
    """Call something later, if the process is still there."""
    timer = threading.Timer(seconds, call, arguments)
    timer.daemon = True
    timer.start()


def _collect_less() -> None:
    """Have Python look for reference cycles less often: events make none, and of those that wait
    there are so many that looking through them again and again took as long as decoding them.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT)


def _load_system(settings: Settings, metrics: WorkerMetrics) -> tuple[Bundle, System]:
    # Numerical libraries are slow to import; health answers meanwhile.
    from extractor.systems import load_system
    from infra.compiling import tell_unkept

    bundle, system = load_system(settings)
    metrics.use_bundle(bundle.version)
    warm(settings, system)
    tell_unkept()
    return bundle, system


def warm(settings: Settings, system: System) -> None:
    """Have all kernels of a worker compiled, so that nothing waits for one later."""
    from infra import record_kernel

    system.warm()
    for one in settings.readers():
        EventDecoder(one.events, SchemaRegistry(settings.registry)).warm()
    record_kernel.warm()


def _open_store(settings: Settings, metrics: WorkerMetrics, interruptions: Interruptions) -> Store:
    from infra.stores import open_store

    return open_store(
        settings.store,
        wait_s=0,
        actions=settings.events.declared_actions.names,
        damage=counted(metrics.store_damage),
        interrupted=interruptions,
    )


def _ensure_topic(broker: BrokerSettings, topic: str) -> None:
    """Create the topic unless it is there; existing ones are left as they are."""
    kept = topic_settings(broker) if topic == broker.dead_letter_topic else {}
    if topic_partitions(broker, topic) == 0 and create_topic(
        broker, topic, broker.partitions, replication=broker.replication, **kept
    ):
        log.info("topic created", topic=topic, partitions=broker.partitions)


async def _retried(
    call: Callable[[], T], part: str, health: Health, stop: asyncio.Event
) -> T | None:
    """What ``call`` returns once it succeeds; None if ``stop`` was set before."""
    while not stop.is_set():
        try:
            result = await asyncio.to_thread(call)
        except (BrokerError, StoreUnavailable, StoreFull) as error:
            health.blocked(part, typed_line(error))
            health.seen_at = time.monotonic()
            await _wait_at_most(stop.wait(), AGAIN_S)
        else:
            health.cleared(part)
            return result
    return None


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, object]) -> bool:
    """Whether ``work`` was done before ``stop`` was set, which ends it."""
    task, stopped = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait((task, stopped), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        return task.done()
    finally:
        task.cancel()
        stopped.cancel()


async def _wait_at_most(event: Awaitable[Any], timeout_s: float) -> None:
    """Wait for the event, ``timeout_s`` at most."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(event, timeout_s)


async def _stop_app(app: LifelongApp) -> None:
    """Stop Faust, and wait for what is being written, which nothing may cut off."""
    try:
        await asyncio.wait_for(asyncio.ensure_future(app.stop()), STOP_S)
    except Exception as error:  # noqa: BLE001 - all that matters is in the store
        log.info("consumer did not stop cleanly", error=typed_line(error))
        if isinstance(app.consumer, BatchConsumer):
            app.consumer.cut_off()
    app.batch_agent.close()
    await asyncio.to_thread(app.writer.close)
