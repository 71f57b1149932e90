"""``/v1`` as a client writes and reads it: one user, candidates by their ids, outcomes, JSON."""

from __future__ import annotations

from typing import Final

import msgspec

from infra.errors import RequestError
from scorer.client.exchange import Call, Reply
from scorer.client.scores import Asked, Scores, scores_of
from scorer.messages import OutcomesAnswer, OutcomesRequest, RankAnswer, RankRequest

HEADERS: Final = {"content-type": "application/json"}


class RankV1:
    """The form of ``/v1``. Thread-safe."""

    names_model = False

    def __init__(self) -> None:
        self._encoder = msgspec.json.Encoder()
        self._decoder = msgspec.json.Decoder(RankAnswer)
        self._counts = msgspec.json.Decoder(OutcomesAnswer)

    def rank(self, request: RankRequest, model: str) -> Call:  # noqa: ARG002
        return self._call("/v1/rank", request)

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

    def outcomes(self, request: OutcomesRequest) -> Call:
        return self._call("/v1/outcomes", request)

    def counted(self, reply: Reply) -> OutcomesAnswer:
        return self._counts.decode(reply.body)

    def index(self) -> Call:
        raise NotImplementedError

    def indexed(self, reply: Reply) -> list[str]:
        raise NotImplementedError

    def _call(self, path: str, request: msgspec.Struct) -> Call:
        try:
            return Call(path, self._encoder.encode(request), HEADERS)
        except UnicodeEncodeError:
            raise RequestError("body", "holds text that is not valid Unicode") from None
