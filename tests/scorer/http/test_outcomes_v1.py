from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest

from infra.metrics import CTR_BINS, Figures
from models.measures.predictions import calibration_error, calibration_ratio
from scorer.readiness import Readiness
from scorer.service import Service
from tests.scorer.conftest import World, ask_callers, client_of

BINS = [f"{bound:g}" for bound in CTR_BINS]


def outcome(ctr: float, *, positive: bool = False) -> dict[str, Any]:
    return {"ctr": ctr, "positive": positive}


def counted(world: World, name: str, version: str) -> list[float]:
    """A counter by bin."""
    figures = Figures(world.registry)
    name = f"lifelong_scorer_{name}_total"
    return [figures.sum(name, version=version, bin=bound) for bound in BINS]


async def test_outcomes_are_counted_by_bins(http: httpx.AsyncClient, world: World) -> None:
    version = world.bundle.version
    told = [outcome(0.0), outcome(0.001), outcome(0.0011, positive=True), outcome(1, positive=True)]

    response = await http.post("/v1/outcomes", json={"version": version, "outcomes": told})

    assert (response.status_code, response.json()) == (200, {"counted": 4, "version": version})
    assert counted(world, "outcomes", version) == [2, 1, *[0] * 7, 1]
    assert counted(world, "outcomes_positive", version) == [0, 1, *[0] * 7, 1]
    assert counted(world, "outcomes_predicted", version) == [0.001, 0.0011, *[0] * 7, 1]


async def test_the_counts_tell_the_calibration_that_is_measured_offline(
    http: httpx.AsyncClient, world: World
) -> None:
    random = np.random.default_rng(0)
    ctrs = random.beta(0.5, 8, 900).round(9)
    labels = random.random(900) < ctrs**1.2
    told = [outcome(float(c), positive=bool(p)) for c, p in zip(ctrs, labels, strict=True)]
    for start in range(0, 900, 300):  # a body of the test's settings takes no more
        body = {"version": world.bundle.version, "outcomes": told[start : start + 300]}
        assert (await http.post("/v1/outcomes", json=body)).status_code == 200

    every, positive, predicted = (
        np.array(counted(world, name, world.bundle.version))
        for name in ("outcomes", "outcomes_positive", "outcomes_predicted")
    )

    assert every.sum() == 900
    assert predicted.sum() / positive.sum() == pytest.approx(calibration_ratio(ctrs, labels))
    error = np.abs(predicted - positive).sum() / every.sum()
    assert error == pytest.approx(calibration_error(ctrs, labels, by="ctr"))


async def test_versions_that_are_told_apart_are_the_last_two(
    http: httpx.AsyncClient, world: World
) -> None:
    first = world.bundle.version
    for version in ("second", "third"):
        world.metrics.use_bundle(version)

    answers = [
        (await http.post("/v1/outcomes", json={**told, "outcomes": [outcome(0.3)]})).json()
        for told in ({"version": "third"}, {"version": "second"}, {"version": first}, {})
    ]

    assert [answer["version"] for answer in answers] == ["third", "second", "other", "other"]
    assert sum(counted(world, "outcomes", "other")) == 2


@pytest.mark.parametrize(
    ("body", "field", "said"),
    [
        ({}, "outcomes", "is missing"),
        ({"outcomes": []}, "outcomes", "length >= 1"),
        ({"outcomes": [outcome(0.5)] * 1001}, "outcomes", "length <= 1000"),
        ({"outcomes": [outcome(1.01)]}, "outcomes[0].ctr", "<= 1"),
        ({"outcomes": [outcome(0.1), outcome(-0.01)]}, "outcomes[1].ctr", ">= 0"),
        ({"outcomes": [{"ctr": 0.5, "positive": 1}]}, "outcomes[0].positive", "bool"),
        ({"outcomes": [{"ctr": 0.5}]}, "outcomes[0].positive", "is missing"),
        ({"outcomes": [outcome(0.5)], "user": "u"}, "user", "is not a field"),
        (b'{"outcomes": [{"ctr": NaN, "positive": true}]}', "body", "is not JSON"),
    ],
)
async def test_a_bad_request_names_its_field_and_counts_nothing(
    world: World, body: Any, field: str, said: str
) -> None:
    world.settings = world.settings.model_copy(update={"max_body_bytes": 100_000})
    content = body if isinstance(body, bytes) else msgspec.json.encode(body)

    async with client_of(world) as http:
        response = await http.post("/v1/outcomes", content=content)

    assert (response.status_code, response.json()["field"]) == (400, field)
    assert said in response.json()["detail"]
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["x-request-id"]
    assert Figures(world.registry).sum("lifelong_scorer_outcomes_total") == 0


async def test_a_body_is_bounded_and_of_json(http: httpx.AsyncClient) -> None:
    large = await http.post("/v1/outcomes", json={"outcomes": [outcome(0.5)] * 1000})
    other = await http.post("/v1/outcomes", content=b"{}", headers={"content-type": "text/csv"})

    assert (large.status_code, other.status_code) == (413, 415)


async def test_outcomes_need_the_scope_of_rankings(world: World, tmp_path: Path) -> None:
    ask_callers(world, tmp_path)
    body = {"outcomes": [outcome(0.5)]}
    async with client_of(world) as http:
        statuses = [
            (await http.post("/v1/outcomes", json=body, headers=headers)).status_code
            for headers in (
                {},
                {"x-api-key": "key of watcher"},
                {"x-api-key": "key of huge-only"},
                {"x-api-key": "key of tiny-only"},
                {"x-api-key": "key of shop"},
            )
        ]

    assert statuses == [401, 403, 403, 200, 200]


async def test_while_the_bundle_is_loaded_nothing_is_counted(world: World) -> None:
    world.service = Service(Readiness(world.metrics))
    async with client_of(world) as http:
        response = await http.post("/v1/outcomes", json={"outcomes": [outcome(0.5)]})

    assert response.status_code == 503
    assert response.headers["retry-after"]
