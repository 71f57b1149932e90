"""``POST /v1/rank``: user and candidates in, items with their CTRs out, highest first."""

from __future__ import annotations

import msgspec

from infra.errors import RequestError
from scorer.ids import check_ids, sound_ids
from scorer.limits import check_candidate_count, check_user, decode_json
from scorer.messages import EXPLAINED, AsOf, RankAnswer, RankRequest, ranked_items
from scorer.ranked import ranked_json
from scorer.ranking import Ranker


class RankV1:
    """Answers ranking requests: the body of one becomes that of its answer. Thread-safe."""

    def __init__(self, max_candidates: int) -> None:
        self._max_candidates = max_candidates
        self._decoder = msgspec.json.Decoder(RankRequest)
        self._encoder = msgspec.json.Encoder()

    def answer(self, ranker: Ranker, body: bytes) -> tuple[bytes, bool]:
        """Rank what a body asks for.

        Returns:
            The answer's body, and whether it is degraded.

        Raises:
            RequestError: the body is malformed or exceeds a limit, or holds candidates that are not
                known and not to be scored; names the field.
            StoreError: the store did not answer, and rankings are not to be degraded.
        """
        request = self.decode(body)
        ids = sound_ids(request.candidates)
        ranking = ranker.rank(
            request.user,
            ids,
            request.time,
            request.unknown_items,
            EXPLAINED if request.explain is True else int(request.explain),
        )
        as_of, explained = ranking.as_of, ranking.explained
        written = ranked_json(ids, ranking.ctrs, request.top_k)
        answer = self._encoder.encode(
            RankAnswer(
                user=request.user,
                model=ranker.bundle.manifest.name,
                version=ranker.bundle.version,
                history=ranking.history,
                items=ranked_items(request.candidates, ranking.ctrs, request.top_k)
                if written is None
                else msgspec.Raw(written),  # type: ignore[arg-type]  # as they will be
                unknown_items=ranking.unknown_items,
                newer=ranking.newer,
                as_of=msgspec.UNSET if as_of is None else AsOf(as_of.epoch, as_of.count),
                degraded=ranking.degraded,
                explained=msgspec.UNSET if explained is None else explained,
            )
        )
        return answer, ranking.degraded

    def decode(self, body: bytes) -> RankRequest:
        """The request held in a body.

        >>> RankV1(max_candidates=10).decode(b'{"user": "u", "candidates": ["a"]}').candidates
        ['a']
        """
        request = decode_json(self._decoder, body)
        check_user(request.user)
        check_candidate_count(len(request.candidates), self._max_candidates)
        # Plain ASCII cannot have more bytes than characters, and is known as such at once.
        if not body.isascii() or b"\\u" in body:
            check_ids("candidates", request.candidates)
        if request.top_k is not None and request.top_k > self._max_candidates:
            raise RequestError("top_k", f"is {request.top_k}, expected 1 to {self._max_candidates}")
        return request
