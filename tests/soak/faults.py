"""The faults: each a function that does something to the scorer, and returns when all is well.

What it does goes into the ledger before it is done.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
import urllib.request
from collections.abc import Callable
from typing import Final

from models.bundle import SCORER
from scorer.stopping import DRAIN_S
from tests.scorer.running import get
from tests.soak.asking import MODEL
from tests.soak.checking import RELOADED_S
from tests.soak.ledger import NOTICED_S, Span, Told
from tests.soak.load import Load
from tests.soak.scene import LAME_DUCK_S, STORE_S, Scene

Fault = Callable[[Scene, Load, random.Random], str]
"""Returns what was done, in a few words."""


def exchange_bundle(scene: Scene, _: Load, chance: random.Random) -> str:
    """The other bundle in its place; processes are told, or look for themselves."""
    model = scene.other
    scene.ledger.versions.append(Told(time.monotonic(), model.bundle.version))
    scene.link(model.path)
    how = _tell(scene, chance)
    in_a_row = 0

    def taken_up() -> bool:
        nonlocal in_a_row
        status, said = get(scene.settings, f"/v2/models/{MODEL}")
        in_a_row = in_a_row + 1 if status == 200 and model.bundle.version in said else 0
        return in_a_row >= 4 * scene.processes

    took_s = scene.wait_until(taken_up, "all processes take up the bundle", RELOADED_S)
    return f"{how}, taken up after {took_s:.1f} s"


def break_bundle(scene: Scene, _: Load, chance: random.Random) -> str:
    """A damaged bundle in its place, and then the one before again."""
    broken = scene.directory / f"broken-{chance.getrandbits(32):08x}"
    shutil.copytree(scene.other.path, broken)
    size = (broken / SCORER).stat().st_size
    (broken / SCORER).write_bytes(bytes(size))
    scene.link(broken)
    os.kill(scene.pid, signal.SIGHUP)
    took_s = scene.wait_until(
        lambda: "a file of it is damaged" in scene.readiness()[1], "a process warns of the bundle"
    )
    scene.link(scene.current.path)
    os.kill(scene.pid, signal.SIGHUP)
    scene.wait_until(
        lambda: all("is not taken" not in scene.readiness()[1] for _ in range(3 * scene.processes)),
        "no process warns of the bundle",
    )
    return f"told after {took_s:.1f} s"


def take_store_away(scene: Scene, _: Load, chance: random.Random) -> str:
    """No store for some seconds, then the same one again."""
    with scene.ledger.noting(scene.ledger.away), scene.lmdb.away():
        for_s = _noticed(chance)
    return f"for {for_s:.1f} s, {_await_store(scene)}"


def replace_store(scene: Scene, _: Load, __: random.Random) -> str:
    """Another store in the place of the one that is read."""
    scene.replace_store()
    return f"by {scene.ledger.stores[-1].what}, {_await_store(scene)}"


def kill_store(scene: Scene, _: Load, chance: random.Random) -> str:
    """SIGKILL of the store's server, which is started again after some seconds."""
    return _without_server(scene, chance, scene.server.kill, scene.server.start)


def hang_store(scene: Scene, _: Load, chance: random.Random) -> str:
    """A server of the store that takes connections and answers nothing, for some seconds."""
    return _without_server(scene, chance, scene.server.hang, scene.server.go_on)


def _without_server(
    scene: Scene, chance: random.Random, take: Callable[[], None], give: Callable[[], None]
) -> str:
    with scene.ledger.noting(scene.ledger.away):
        take()
        for_s = _noticed(chance)
    with scene.ledger.noting(scene.ledger.unsure):
        give()
        return f"for {for_s:.1f} s, {_await_store(scene)}"


def slow_store(scene: Scene, _: Load, chance: random.Random) -> str:
    """A server of the store that stands still again and again, mostly for less than reads wait."""
    until = time.monotonic() + chance.uniform(4, 8)
    longest_s = chance.choice((0.3, 0.3, 2 * STORE_S))
    with scene.ledger.noting(scene.ledger.unsure):
        while time.monotonic() < until:
            scene.server.hang()
            time.sleep(chance.uniform(0, longest_s))
            scene.server.go_on()
            time.sleep(chance.uniform(0, 0.1))
        return f"by up to {longest_s:.1f} s, {_await_store(scene)}"


def kill_process(scene: Scene, _: Load, __: random.Random) -> str:
    """SIGKILL of the youngest serving process; the supervisor starts another."""
    victim = scene.pids()[-1]
    scene.ledger.kills.append(time.monotonic())
    os.kill(victim, signal.SIGKILL)
    return f"{victim}, {_await_processes(scene, victim)}"


def exchange_process(scene: Scene, _: Load, __: random.Random) -> str:
    """SIGTERM of the youngest serving process, which costs no client an answer."""
    victim = scene.pids()[-1]
    scene.ledger.cut.append(Span(time.monotonic() + DRAIN_S))
    os.kill(victim, signal.SIGTERM)
    took_s = scene.wait_until(lambda: victim not in scene.pids(), "the process ends")
    scene.ledger.cut[-1].ended = time.monotonic()
    return f"{victim}, ended after {took_s:.1f} s, {_await_processes(scene, victim)}"


def restart(scene: Scene, _: Load, __: random.Random) -> str:
    """SIGTERM of the whole, and a start in the other mode."""
    now = time.monotonic()
    scene.ledger.leave.append(Span(now))
    scene.ledger.down.append(Span(now + LAME_DUCK_S - 0.2))
    scene.stop()
    scene.ledger.leave[-1].ended = time.monotonic()
    ended = time.monotonic()
    scene.start()
    scene.ledger.down[-1].ended = time.monotonic()
    mode = scene.ledger.refuses[-1].what
    return f"ended after {ended - now:.1f} s, to {mode}"


def overload(scene: Scene, load: Load, chance: random.Random) -> str:
    """Far more than can be answered, for a moment."""
    seconds = chance.uniform(0.5, 2)
    with scene.ledger.noting(scene.ledger.bursts):
        load.burst(seconds, chance.getrandbits(32))
    return f"for {seconds:.1f} s"


FAULTS: Final[dict[str, Fault]] = {
    "bundle-exchanged": exchange_bundle,
    "bundle-broken": break_bundle,
    "store-away": take_store_away,
    "store-replaced": replace_store,
    "store-killed": kill_store,
    "store-hung": hang_store,
    "store-slow": slow_store,
    "process-killed": kill_process,
    "process-exchanged": exchange_process,
    "overload": overload,
    "restarted": restart,
}

OF_LMDB: Final = frozenset({"store-away", "store-replaced"})
OF_SERVERS: Final = frozenset({"store-killed", "store-hung", "store-slow"})


def faults_of(store: str) -> tuple[str, ...]:
    """The faults that there are where the scorer reads a store of some kind."""
    others = OF_SERVERS if store == "lmdb" else OF_LMDB
    return tuple(fault for fault in FAULTS if fault not in others)


def _tell(scene: Scene, chance: random.Random) -> str:
    how = chance.choice(("hang-up", "reload", "poll"))
    if how == "hang-up":
        os.kill(scene.pid, signal.SIGHUP)
    elif how == "reload":
        url = f"http://127.0.0.1:{scene.admin_port}/reload"
        with urllib.request.urlopen(urllib.request.Request(url, method="POST"), timeout=60) as told:
            told.read()
    return how


def _noticed(chance: random.Random) -> float:
    """Wait until all processes know, and some seconds more; returns the seconds waited."""
    for_s = NOTICED_S + chance.uniform(0.5, 4)
    time.sleep(for_s)
    return for_s


def _await_store(scene: Scene) -> str:
    def back() -> bool:
        status, said = scene.readiness()
        return status == 200 and "degraded" not in said

    took_s = scene.wait_until(
        lambda: all(back() for _ in range(2 * scene.processes)), "the store is read again"
    )
    return f"read again after {took_s:.1f} s"


def _await_processes(scene: Scene, without: int) -> str:
    took_s = scene.wait_until(
        lambda: len(scene.ready_pids() - {without}) == scene.processes, "all processes are ready"
    )
    return f"replaced after {took_s:.1f} s"
