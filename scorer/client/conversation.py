"""What a client does to get an answer, step by step, be it a thread or a task that takes them."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from typing import TypeAlias, TypeVar

from scorer.client.errors import ScorerError, ScorerUnavailable, refusal
from scorer.client.exchange import Call, Form, Reply
from scorer.client.retries import Budget, Retries

Answer = TypeVar("Answer")

Steps: TypeAlias = Generator[tuple[Call, float] | float, Reply | None, Answer]
"""Calls to exchange until a moment of the monotonic clock, of each of which the reply is sent or
the error thrown, and seconds to wait; in the end the answer."""


class Conversations:
    """A client's conversations. May be used from several threads."""

    def __init__(
        self, url: str, form: Form, timeout_s: float, retries: Retries, model: str | None
    ) -> None:
        self._url = url
        self._form = form
        self._timeout_s = timeout_s
        self._budget = Budget(retries)
        self._given = model
        self._found: str | None = None

    def ask(self, call: Callable[[str], Call], read: Callable[[Reply], Answer]) -> Steps[Answer]:
        """The steps to an answer.

        Args:
            call: makes the question, of the model's name.
            read: reads the answer; a ValueError says that there is none.
        """
        deadline = time.monotonic() + self._timeout_s
        self._budget.begin()
        again = 0
        while True:
            try:
                return (yield from self._tried(call, read, deadline))
            except ScorerUnavailable as error:
                pause_s = self._budget.pause_s(again, error, deadline)
                if pause_s is None:
                    raise
            again += 1
            yield pause_s

    def _tried(
        self, call: Callable[[str], Call], read: Callable[[Reply], Answer], deadline: float
    ) -> Steps[Answer]:
        known = self._found
        reply = yield from self._named(call, deadline)
        if reply.status == 404 and known is not None:
            # The model may have been exchanged for one of another name since.
            self._found = None
            reply = yield from self._named(call, deadline)
        return self._read(reply, read)

    def _named(self, call: Callable[[str], Call], deadline: float) -> Steps[Reply]:
        name = self._given or self._found
        if name is None and self._form.names_model:
            reply = yield (self._form.index(), deadline)
            assert reply is not None
            names = self._read(reply, self._form.indexed)
            if len(names) != 1:
                raise ScorerError(
                    f"{self._url} serves {', '.join(names) or 'no model'}; say which (model)"
                )
            name = self._found = names[0]
        reply = yield (call(name or ""), deadline)
        assert reply is not None
        return reply

    def _read(self, reply: Reply, read: Callable[[Reply], Answer]) -> Answer:
        if reply.status != 200:
            raise refusal(self._url, reply)
        try:
            return read(reply)
        except ValueError as error:
            raise ScorerError(f"{self._url} answered with no ranking: {error}") from None
