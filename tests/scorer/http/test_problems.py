from __future__ import annotations

import httpx
import pytest

from infra.errors import (
    LifelongError,
    RecordDamaged,
    RecordTooLarge,
    StoreCorrupt,
    StoreError,
    StoreFull,
    StoreMismatch,
    StoreUnavailable,
    without_places,
)
from scorer.http.problems import KINDS, type_of
from tests.scorer.conftest import World, client_of


async def test_a_problem_outside_of_v2_has_the_form_of_rfc_9457(http: httpx.AsyncClient) -> None:
    response = await http.post(
        "/v1/rank", json={"user": "u", "candidates": []}, headers={"x-request-id": "seven"}
    )
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json() == {
        "type": "/problems/malformed",
        "title": "The request is malformed",
        "status": 400,
        "detail": "candidates is empty, expected at least one id",
        "instance": "seven",
        "field": "candidates",
    }


async def test_what_passes_says_when_to_come_again(strict_world: World) -> None:
    strict_world.store.away = True
    async with client_of(strict_world) as http:
        response = await http.post("/v1/rank", json={"user": "u", "candidates": ["a"]})
        below_v2 = await http.post(
            "/v2/models/tiny/infer",
            json={
                "inputs": [
                    {"name": "user", "shape": [1], "datatype": "BYTES", "data": ["u"]},
                    {"name": "candidates", "shape": [1], "datatype": "BYTES", "data": ["a"]},
                ]
            },
        )
    assert response.json()["retry_after_s"] == int(response.headers["retry-after"]) == 1
    assert below_v2.json() == {"error": "the store cannot be reached"}
    assert below_v2.headers["retry-after"] == "1"


@pytest.mark.parametrize("path", ["/v2/nothing", "/v2/", "/v2/models/tiny/infer"])
async def test_below_v2_an_error_is_a_string(http: httpx.AsyncClient, path: str) -> None:
    response = await http.delete(path)
    assert response.status_code in {404, 405}
    assert set(response.json()) == {"error"}
    assert isinstance(response.json()["error"], str)


@pytest.mark.parametrize("reason", KINDS)
async def test_a_type_is_where_its_kind_is_explained(http: httpx.AsyncClient, reason: str) -> None:
    page = await http.get(type_of(reason))
    assert page.status_code == 200
    assert page.text.startswith(KINDS[reason].title)


@pytest.mark.parametrize("path", ["/problems/nothing", "/problems/unknown_items"])
async def test_nothing_is_said_of_what_is_no_kind(http: httpx.AsyncClient, path: str) -> None:
    assert (await http.get(path)).status_code == 404


@pytest.mark.parametrize("host", ["evil.example", "[", "a b"])
async def test_no_answer_leads_to_the_host_that_was_named(
    http: httpx.AsyncClient, host: str
) -> None:
    for path in ("/v1/rank/", "/v2/health/live/"):
        response = await http.get(path, headers={"host": host})
        assert response.status_code == 404
        assert "location" not in response.headers
        assert "evil" not in response.text


async def test_an_answer_repeats_little_of_what_was_sent(http: httpx.AsyncClient) -> None:
    long = "x" * 5_000
    for response in (
        await http.get(f"/{long}"),
        await http.request(long.upper(), "/v1/rank"),
        await http.get(f"/v2/models/{long}"),
        await http.get(f"/problems/{long}"),
        await http.post("/v1/rank", json={"user": "u", "candidates": ["a"], long: 1}),
        await http.post("/v1/rank", content=b"{}", headers={"content-type": long}),
        await http.post("/v1/rank", content=b"{}", headers={"content-encoding": long}),
    ):
        assert response.status_code >= 400
        assert len(response.content) < 700, response.text


PLACE = "at 10.0.0.7:3000 and /var/lib/store of user u"


@pytest.mark.parametrize(
    "error",
    [
        StoreError(PLACE),
        StoreUnavailable(PLACE),
        StoreFull(PLACE),
        StoreCorrupt(PLACE),
        RecordDamaged("u", PLACE),
        StoreMismatch(PLACE),
        RecordTooLarge(PLACE),
    ],
)
def test_an_error_of_the_store_is_told_without_its_place(error: StoreError) -> None:
    told = without_places(error)
    assert PLACE not in told
    assert not any(word in told for word in ("10.0", "/var", "user"))


def test_every_kind_of_store_error_has_its_words() -> None:
    def below(kind: type[LifelongError]) -> list[type[LifelongError]]:
        return [one for each in kind.__subclasses__() for one in (each, *below(each))]

    kinds = [one for one in below(StoreError) if one.__module__ == "infra.errors"]
    told = {without_places(one.__new__(one)) for one in kinds}  # type: ignore[arg-type]
    assert len(told) == len(kinds)
