"""Clients of the scorer, blocking and asyncio, over HTTP and gRPC.

    RankClient, AsyncRankClient  ask for rankings, or for CTRs in arrays, and tell what became of
                                 what was shown
    ScorerError                  what the scorer or the way to it did wrong
    └── ScorerUnavailable        not reachable, overloaded or not ready: try again later
    infra.errors.RequestError    what the request did wrong; names the field

Whatever the protocol, the arguments, answers and errors are the same. Each request tells how much
time is left for it, so that a scorer does not work on what nobody waits for any more. A client
tries again only if told to (`Retries`), within that time. Connections stay open between requests.
"""

from scorer.client.address import Tls
from scorer.client.clients import AsyncRankClient, RankClient
from scorer.client.errors import ScorerError, ScorerUnavailable
from scorer.client.retries import NO_RETRIES, Retries
from scorer.client.scores import Scores
from scorer.messages import Outcome

__all__ = [
    "NO_RETRIES",
    "AsyncRankClient",
    "Outcome",
    "RankClient",
    "Retries",
    "ScorerError",
    "ScorerUnavailable",
    "Scores",
    "Tls",
]
