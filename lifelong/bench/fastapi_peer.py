"""The peer of ``lifelong bench load``: DIN-L in torch behind FastAPI, as one would write it.

It has its users' behaviors in memory, computes features as we do, and runs in the event loop, which
spares it a change of thread: all of that is to its advantage.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from lifelong.bench.arrivals import keep_to
from lifelong.bench.requests import Request
from scorer.ids import item_keys


class Asked(BaseModel):
    """Body of a request."""

    user: str
    candidates: list[str]


class Answered(BaseModel):
    """Body of an answer."""

    items: list[str]
    ctrs: list[float]


def make_app(users: Mapping[str, Request]) -> FastAPI:
    """The application.

    Args:
        users: how each is answered.
    """
    app = FastAPI()

    @app.post("/rank")
    async def rank(asked: Asked) -> Answered:
        ctrs = users[asked.user].answer(item_keys(asked.candidates))
        order = (-ctrs).argsort(kind="stable").tolist()
        items = [asked.candidates[place] for place in order]
        return Answered(items=items, ctrs=ctrs[order].tolist())

    @app.get("/ready")
    async def ready() -> dict[str, bool]:
        return {"ready": True}

    return app


def serve(users: Mapping[str, Request], port: int, core: int | None) -> None:
    """Answer until the process is ended, on one thread of torch."""
    keep_to(core)
    torch.set_num_threads(1)
    uvicorn.run(make_app(users), port=port, loop="uvloop", http="httptools", log_level="error")
