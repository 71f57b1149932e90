"""What a generator of load tells, of a server that is made up."""

import socket
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from lifelong.arrivals import Answers, drawn
from lifelong.bench.arrivals import ask, offer

REQUEST = b"POST / HTTP/1.1\r\ncontent-length: 0\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


@pytest.fixture
def port() -> Iterator[int]:
    """Of a server that answers whatever it reads, one connection after another in threads."""
    listener = socket.create_server(("127.0.0.1", 0))

    def answer(connection: socket.socket) -> None:
        with connection:
            while connection.recv(4096):
                connection.sendall(OK)

    def listen() -> None:
        try:
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=answer, args=(connection,), daemon=True).start()
        except OSError:
            return

    threading.Thread(target=listen, daemon=True).start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def test_every_request_that_was_due_has_its_answer(port: int) -> None:
    due = drawn(rate=200, seconds=0.2, seed=1)
    answers = offer(port, [REQUEST], due, 0.2)
    assert len(answers.status) == len(due) > 0
    assert (answers.status == 200).all()
    assert (answers.latency > 0).all()


def test_clients_ask_again_once_they_are_answered(port: int) -> None:
    answers = ask(port, [REQUEST], clients=2, seconds=0.1)
    assert len(answers.status) > 2
    assert (answers.status == 200).all()


def test_what_came_too_late_or_never_is_no_goodput() -> None:
    due = np.array([0.0, 0.1, 0.6, 0.7])
    latency = np.array([0.01, np.inf, 0.01, 0.2])
    answers = Answers(1.0, due, latency, np.array([200, 0, 200, 200]))
    assert answers.goodput(0.05) == 2
    assert answers.after(0.5).rate == 4
    assert answers.after(0.5).goodput(0.05) == 2
