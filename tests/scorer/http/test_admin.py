from __future__ import annotations

import asyncio
import http.client
import threading
from pathlib import Path

import httpx
import pytest

from extractor.reloading import Outcome, Reloaded
from infra.errors import LifelongError, SettingsError
from infra.settings import ScorerSettings
from scorer.http.admin import AdminServer, Reload, create_admin_app
from tests.scorer.conftest import World, ask_callers, client_of
from tests.scorer.running import free_port


def admin_of(world: World, reload: Reload | None = None) -> httpx.AsyncClient:
    app = create_admin_app(
        world.settings, world.metrics, world.registry, access=world.access, reload=reload
    )
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://admin")


async def test_metrics_are_on_the_admin_port_and_there_alone(world: World) -> None:
    world.settings = ScorerSettings(admin_port=8082)
    async with admin_of(world) as admin, client_of(world) as http:
        assert "lifelong_scorer_requests" in (await admin.get("/metrics")).text
        assert (await http.get("/metrics")).status_code == 404
        assert "/metrics" not in (await http.get("/openapi.json")).json()["paths"]
        assert (await admin.post("/v1/rank", json={})).status_code == 404


async def test_what_cannot_be_reloaded_has_no_such_path(world: World) -> None:
    async with admin_of(world) as admin:
        assert (await admin.post("/reload")).status_code == 404


async def test_a_reload_is_made_in_a_thread_and_tells_what_came_of_it(world: World) -> None:
    threads: list[threading.Thread] = []

    def reload() -> Reloaded:
        threads.append(threading.current_thread())
        return Reloaded("reloaded", "b2")

    async with admin_of(world, reload) as admin:
        answer = await admin.post("/reload")
        assert (await admin.get("/reload")).status_code == 405
    assert answer.json() == {"reloaded": True, "outcome": "reloaded", "version": "b2"}
    assert len(threads) == 1
    assert threads[0] is not threading.main_thread()


@pytest.mark.parametrize(("outcome", "status"), [("same", 200), ("waiting", 202), ("failed", 409)])
async def test_a_reload_that_changed_nothing_says_why(
    world: World, outcome: Outcome, status: int
) -> None:
    def reload() -> Reloaded:
        return Reloaded(outcome, "b1", "scorer.onnx is not there yet")

    async with admin_of(world, reload) as admin:
        answer = await admin.post("/reload")
    assert answer.status_code == status
    assert answer.json() == {
        "reloaded": False,
        "outcome": outcome,
        "version": "b1",
        "reason": "scorer.onnx is not there yet",
    }


async def test_there_is_no_reload_before_the_first_bundle(world: World) -> None:
    def reload() -> Reloaded:
        raise LifelongError("the first bundle is being loaded yet; come again")

    async with admin_of(world, reload) as admin:
        answer = await admin.post("/reload")
    assert answer.status_code == 409
    assert answer.json()["reason"] == "the first bundle is being loaded yet; come again"


async def test_a_page_in_a_browser_reloads_nothing(world: World) -> None:
    asked: list[int] = []

    def reload() -> Reloaded:
        asked.append(1)
        return Reloaded("same", "b1")

    async with admin_of(world, reload) as admin:
        answer = await admin.post("/reload", headers={"origin": "http://evil.example"})
    assert answer.status_code == 403
    assert asked == []


@pytest.mark.parametrize("open_metrics", [True, False])
async def test_where_callers_are_asked_a_reload_is_for_the_admin(
    world: World, tmp_path: Path, *, open_metrics: bool
) -> None:
    ask_callers(world, tmp_path)
    world.settings = ScorerSettings(open_metrics=open_metrics)
    given = []
    async with admin_of(world, lambda: Reloaded("reloaded", "b2")) as admin:
        for name in ("nobody", "shop", "chief"):
            headers = {"x-api-key": f"key of {name}"}
            reloaded = await admin.post("/reload", headers=headers)
            shown = await admin.get("/metrics", headers=headers)
            given.append((reloaded.status_code, shown.status_code))
    refused = (200, 200) if open_metrics else (401, 403)
    assert given == [(401, refused[0]), (403, refused[1]), (200, 200)]


async def test_a_server_answers_until_it_is_stopped(world: World) -> None:
    settings = ScorerSettings()
    server = AdminServer(create_admin_app(settings, world.metrics, world.registry), settings)
    port = await server.start()

    def ask() -> int:
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        client.request("GET", "/metrics")
        status = client.getresponse().status
        client.close()
        return status

    assert await asyncio.to_thread(ask) == 200
    await server.stop(1.0)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.to_thread(ask)


async def test_a_port_that_cannot_be_had_is_one_line(world: World) -> None:
    settings = ScorerSettings(admin_host="192.0.2.1", admin_port=free_port())
    server = AdminServer(create_admin_app(settings, world.metrics, world.registry), settings)
    with pytest.raises(SettingsError, match=r"scorer\.admin_host = '192\.0\.2\.1'"):
        await server.start()
