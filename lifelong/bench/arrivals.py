"""A generator of requests that are due at given times (`lifelong.arrivals`), for benches.

It runs in a process of its own (`Generator`), on sockets and epoll alone, and spins before an
arrival, since timers of a millisecond would be coarser than what is measured.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Final

import numpy as np

from infra.arrays import F64
from lifelong.arrivals import Answers

CONNECTIONS: Final = 400
"""Kept open at most; who finds none free waits for one, and that counts."""
PATIENCE_S: Final = 2.0
"""How long answers are waited for once all requests are sent."""
SPIN_S: Final = 0.0015
RECEIVE_BYTES: Final = 262_144
HEAD_END: Final = b"\r\n\r\n"
LENGTH: Final = b"content-length: "


class Generator:
    """A process of its own that asks, on a core of its own where there is one to give."""

    def __init__(self, core: int | None) -> None:
        self._process = ProcessPoolExecutor(
            1, get_context("spawn"), initializer=keep_to, initargs=(core,)
        )

    def offer(self, port: int, requests: Sequence[bytes], due: F64, seconds: float) -> Answers:
        """Send requests, in turn, when they are due."""
        return self._process.submit(offer, port, requests, due, seconds).result()

    def ask(self, port: int, requests: Sequence[bytes], clients: int, seconds: float) -> Answers:
        """Have so many clients ask for a while, each again once it is answered (a closed loop)."""
        return self._process.submit(ask, port, requests, clients, seconds).result()

    def close(self) -> None:
        """End the process."""
        self._process.shutdown()


def keep_to(core: int | None) -> None:
    """Run the current process on one core alone; None: on any."""
    if core is not None:
        os.sched_setaffinity(0, {core})


def offer(port: int, requests: Sequence[bytes], due: F64, seconds: float) -> Answers:
    """`Generator.offer`, in this process."""
    asked = _Asked(port, len(due))
    waiting: deque[int] = deque()
    at, n = 0, len(due)
    began = time.perf_counter()
    times = due.tolist()
    while at < n or asked.under_way or waiting:
        now = time.perf_counter() - began
        while at < n and times[at] <= now:
            waiting.append(at)
            at += 1
        while waiting and asked.can_send():
            number = waiting.popleft()
            asked.send(number, requests[number % len(requests)])
        if at == n and now > seconds + PATIENCE_S:
            break
        left = (times[at] - now) if at < n else 0.01
        asked.receive(0.0 if left < SPIN_S else left - 0.001)
    asked.close()
    return Answers(seconds, due, asked.done - began - due, asked.status)


def ask(port: int, requests: Sequence[bytes], clients: int, seconds: float) -> Answers:
    """`Generator.ask`, in this process."""
    most = int(20_000 * seconds)
    asked = _Asked(port, most)
    due = np.zeros(most)
    began = time.perf_counter()
    number = 0
    while True:
        now = time.perf_counter() - began
        while now < seconds and number < most and asked.under_way < clients:
            due[number] = time.perf_counter() - began
            asked.send(number, requests[number % len(requests)])
            number += 1
        if not asked.under_way or now > seconds + PATIENCE_S:
            break
        asked.receive(0.01)
    asked.close()
    latency = asked.done[:number] - began - due[:number]
    return Answers(seconds, due[:number], latency, asked.status[:number])


class _Connection:
    """One connection, and the answer that comes over it."""

    __slots__ = ("answer", "number", "rest", "socket", "stuck", "whole")

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.number = -1
        """Of the request under way; -1: none is."""
        self.rest = b""
        """Of the request, not sent yet."""
        self.stuck = False
        """Whether the socket takes no more of it for now."""
        self.answer = b""
        self.whole = 0
        """Bytes of the whole answer; 0: not known yet."""


class _Asked:
    """Requests under way, and what became of the others."""

    def __init__(self, port: int, most: int) -> None:
        self.done = np.full(most, np.inf)
        """When the answer of each came, s of the clock; infinite: not yet."""
        self.status = np.zeros(most, np.int64)
        self.under_way = 0
        self._port = port
        self._poll = select.epoll()
        self._all: dict[int, _Connection] = {}
        self._idle: list[_Connection] = []

    def can_send(self) -> bool:
        """Whether there is a connection for one more request."""
        return bool(self._idle) or len(self._all) < CONNECTIONS

    def send(self, number: int, request: bytes) -> None:
        """Send a request, or as much of it as the socket takes."""
        connection = self._idle.pop() if self._idle else self._connected()
        connection.number, connection.answer, connection.whole = number, b"", 0
        connection.rest = request
        self.under_way += 1
        self._send_rest(connection)

    def receive(self, wait_s: float) -> None:
        """Take what came."""
        for descriptor, event in self._poll.poll(wait_s):
            connection = self._all.get(descriptor)
            if connection is None:
                continue
            if event & select.EPOLLOUT:
                self._send_rest(connection)
            if event & ~select.EPOLLOUT:
                self._receive(connection)

    def close(self) -> None:
        """Hang up."""
        for connection in self._all.values():
            connection.socket.close()
        self._poll.close()

    def _connected(self) -> _Connection:
        connection = _Connection(self._port)
        self._all[connection.socket.fileno()] = connection
        self._poll.register(connection.socket, select.EPOLLIN)
        return connection

    def _send_rest(self, connection: _Connection) -> None:
        try:
            sent = connection.socket.send(connection.rest)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._lost(connection)
            return
        connection.rest = connection.rest[sent:]
        if bool(connection.rest) != connection.stuck:
            connection.stuck = not connection.stuck
            events = select.EPOLLIN | (select.EPOLLOUT if connection.stuck else 0)
            self._poll.modify(connection.socket, events)

    def _receive(self, connection: _Connection) -> None:
        try:
            data = connection.socket.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._lost(connection)
            return
        answer = connection.answer = connection.answer + data if connection.answer else data
        if not connection.whole:
            head = answer.find(HEAD_END)
            if head < 0:
                return
            at = answer.lower().find(LENGTH, 0, head) + len(LENGTH)
            connection.whole = head + 4 + int(answer[at : answer.find(b"\r\n", at)])
        if len(answer) >= connection.whole:
            self.done[connection.number] = time.perf_counter()
            self.status[connection.number] = int(answer[9:12])
            self.under_way -= 1
            connection.number = -1
            self._idle.append(connection)

    def _lost(self, connection: _Connection) -> None:
        """The server hung up."""
        if connection.number >= 0:
            self.under_way -= 1
        elif connection in self._idle:
            self._idle.remove(connection)
        del self._all[connection.socket.fileno()]
        connection.socket.close()
