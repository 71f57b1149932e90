"""How a server stops: clients are asked to go, and none of their requests is lost."""

from __future__ import annotations

import asyncio
import http.client
import threading
import time

import pytest
from starlette.types import Receive, Scope, Send

from infra.settings import ScorerSettings
from scorer.siblings import Siblings
from tests.scorer.http.serving import echo, serving, until

LONG = ScorerSettings(lame_duck_s=60)


def asked(connection: http.client.HTTPConnection) -> str | None:
    """The Connection header of the answer to a request."""
    connection.request("POST", "/x", b"abc")
    answer = connection.getresponse()
    assert (answer.status, answer.read()) == (200, b"1.1 POST /x 3")
    return answer.getheader("Connection")


def test_requests_are_answered_while_a_server_takes_leave() -> None:
    with serving(echo, LONG) as served:
        kept = served.client()
        assert asked(kept) is None
        served.stop()
        until(lambda: served.server._state.draining)
        assert served.stops
        assert asked(kept) == "close"
        assert asked(kept) == "close"  # http.client has connected anew
        assert served.thread.is_alive()

        served.stop()
        served.thread.join()
        assert len(served.stops) == 1


def test_a_request_under_way_is_answered_after_the_second_signal_and_not_after_the_third() -> None:
    go, begun = threading.Event(), threading.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        begun.set()
        while not go.is_set():  # noqa: ASYNC110  # of a thread
            await asyncio.sleep(0.01)
        await echo(scope, receive, send)

    def answered(signals: int) -> bool:
        go.clear()
        begun.clear()
        with serving(app, LONG) as served:
            connection = served.client()
            connection.request("POST", "/x", b"abc")
            until(begun.is_set)
            for _ in range(signals):
                served.stop()
            if signals == 3:
                served.thread.join()
            until(lambda: served.server._acceptor.closed)  # type: ignore[union-attr]
            go.set()
            try:
                return connection.getresponse().status == 200
            except (http.client.HTTPException, OSError):
                return False

    assert answered(2)
    assert not answered(3)


def test_no_request_is_lost_when_servers_take_turns() -> None:
    """The first stops while the second serves; clients go over to it by the protocol."""
    lost: list[BaseException] = []
    done = threading.Event()
    settings = ScorerSettings(lame_duck_s=1)

    with serving(echo, settings) as first, serving(echo, settings) as second:

        def ask() -> None:
            connection = first.client()
            while not done.is_set():
                try:
                    if asked(connection) == "close":
                        connection.close()
                        connection = second.client()
                except (OSError, http.client.HTTPException, AssertionError) as error:
                    lost.append(error)
                    return

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        time.sleep(0.1)
        first.stop()
        first.thread.join()
        done.set()
        for thread in threads:
            thread.join()
    assert lost == []


def test_a_process_whose_siblings_go_on_leaves_new_connections_to_them() -> None:
    siblings = Siblings(2)
    with serving(echo, LONG, siblings.place(0)) as served:
        kept = served.client()
        assert asked(kept) is None
        served.stop()
        until(lambda: served.server._acceptor.closed)  # type: ignore[union-attr]
        assert not served.stops, "it says that it is not ready, though the scorer is"
        assert asked(kept) == "close"
        served.thread.join()  # long before its time is up


def test_a_process_is_told_to_stop_by_its_supervisor() -> None:
    siblings = Siblings(2)
    with serving(echo, LONG, siblings.place(0)) as served:
        siblings.stop()
        until(lambda: served.stops)
        assert asked(served.client()) == "close"
        siblings.stop()
        served.thread.join()


def test_a_signal_that_comes_twice_at_once_is_one_to_a_process_with_a_supervisor() -> None:
    siblings = Siblings(2)
    with serving(echo, LONG, siblings.place(0)) as served:
        served.stop()
        siblings.stop()
        served.stop()
        until(lambda: served.server._state.draining)
        assert asked(served.client()) == "close"
        assert served.thread.is_alive()


def test_connections_beyond_the_bound_wait() -> None:
    with serving(echo, ScorerSettings(lame_duck_s=0, max_connections=2)) as served:
        first, second, third = (served.client() for _ in range(3))
        assert asked(first) is None
        assert asked(second) is None
        third.connect()
        third.sock.sendall(b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        third.sock.settimeout(0.3)
        with pytest.raises(TimeoutError):
            third.sock.recv(1)
        first.close()
        third.sock.settimeout(30)
        assert third.sock.recv(12) == b"HTTP/1.1 200"


def test_connections_go_to_the_process_that_has_fewest() -> None:
    """Two servers in threads share a socket as two processes would."""
    siblings = Siblings(2)
    siblings.accepts(1, 0)  # a sibling that is there, and does not take any
    with serving(echo, place=siblings.place(0)) as served:
        connections = [served.client() for _ in range(3)]
        for connection in connections:
            assert asked(connection) is None  # after a moment, all the same
        assert not siblings.fewest(0)
        siblings.accepts(1, 3)
        until(lambda: siblings.fewest(0))
