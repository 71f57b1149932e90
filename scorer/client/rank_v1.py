"""``/v1/rank`` as a client writes and reads it: one user, candidates by their ids, JSON."""

from __future__ import annotations

from typing import Final

import msgspec

from infra.errors import RequestError
from scorer.client.exchange import Call, Reply
from scorer.client.scores import Asked, Scores, scores_of
from scorer.messages import RankAnswer, RankRequest

HEADERS: Final = {"content-type": "application/json"}


class RankV1:
    """The form of ``/v1/rank``. Thread-safe."""

    names_model = False

    def __init__(self) -> None:
        self._encoder = msgspec.json.Encoder()
        self._decoder = msgspec.json.Decoder(RankAnswer)

    def rank(self, request: RankRequest, model: str) -> Call:  # noqa: ARG002
        try:
            return Call("/v1/rank", self._encoder.encode(request), HEADERS)
        except UnicodeEncodeError:
            raise RequestError("body", "holds text that is not valid Unicode") from None

    def ranking(self, request: RankRequest, reply: Reply) -> RankAnswer:  # noqa: ARG002
        return self._decoder.decode(reply.body)

    def score(self, asked: Asked, model: str) -> Call:
        if asked.ids is None:
            raise RequestError("candidates", 'keys go with protocol "binary" or "grpc"')
        if len(asked.users) != 1:
            raise RequestError("user", 'several users go with protocol "binary" or "grpc"')
        time_ms = next(iter(asked.times_ms), None)
        request = RankRequest(
            asked.users[0], list(asked.ids[0]), time=time_ms, unknown_items=asked.unknown_items
        )
        return self.rank(request, model)

    def scores(self, asked: Asked, reply: Reply) -> Scores:
        assert asked.ids is not None
        try:
            return scores_of(asked.ids[0], self._decoder.decode(reply.body))
        except KeyError as error:
            raise ValueError(f"{error} is not in it") from None

    def index(self) -> Call:
        raise NotImplementedError

    def indexed(self, reply: Reply) -> list[str]:
        raise NotImplementedError
