"""Clients of others, unmodified, over a socket: what they send by default gets its answer."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.types import ASGIApp

from infra.settings import ScorerSettings
from models.bundle import Bundle
from scorer.http.app import create_app
from tests.certificates import Authority
from tests.scorer.conftest import World, made_world
from tests.scorer.http.serving import Served, serving

BODY = json.dumps({"user": "u", "candidates": [f"item-{n}" for n in range(1, 21)]})
LONGEST_S = 120


@pytest.fixture(scope="module")
def world(bundle: Bundle) -> Iterator[World]:
    yield from made_world(bundle, degrade=True)


def app_of(world: World) -> ASGIApp:
    return create_app(world.service, world.settings, world.metrics, world.registry)


@pytest.fixture(scope="module")
def served(world: World) -> Iterator[Served]:
    with serving(app_of(world)) as served:
        yield served


def command(name: str) -> str:
    """The path of a program; CI has it."""
    path = shutil.which(name)
    if path is None and not os.environ.get("CI"):
        pytest.skip(f"{name} is not installed")
    assert path is not None, f"{name} is not installed"
    return path


def said(*arguments: str | Path) -> str:
    done = subprocess.run(
        [str(argument) for argument in arguments],
        capture_output=True,
        text=True,
        timeout=LONGEST_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def curl(*arguments: str | Path) -> tuple[str, dict[str, object]]:
    """The version of HTTP of the last answer, and the answer."""
    answer = said(command("curl"), "-sS", "-w", " %{http_version}", *arguments)
    body, _, version = answer.rpartition(" ")
    return version, json.loads(body)


@pytest.mark.parametrize(
    ("option", "version"),
    [("--http1.1", "1.1"), ("--http2", "1.1"), ("--http2-prior-knowledge", "2")],
)
def test_curl(served: Served, option: str, version: str) -> None:
    url = f"http://127.0.0.1:{served.port}/v1/rank"
    headers = ("-H", "Content-Type: application/json")
    answered, answer = curl(option, *headers, "-d", BODY, url)
    assert answered == version
    assert len(answer["items"]) == 20  # type: ignore[arg-type]


def test_the_client_of_the_jdk_offers_an_upgrade_and_is_answered(served: Served) -> None:
    url = f"http://127.0.0.1:{served.port}/v1/rank"
    answers = jdk(url, BODY, "3")
    assert [answer[:2] for answer in answers] == [["HTTP_1_1", "200"]] * 3
    assert len(json.loads(answers[2][2])["items"]) == 20


def test_over_tls_both_speak_http2(world: World, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair = authority.pair("server")
    settings = ScorerSettings(tls_cert=pair.cert, tls_key=pair.key, lame_duck_s=0)
    with serving(app_of(world), settings) as served:
        url = f"https://127.0.0.1:{served.port}/v1/rank"
        headers = ("-H", "Content-Type: application/json")
        answered, answer = curl("--cacert", authority.certificate, *headers, "-d", BODY, url)
        assert answered == "2"
        assert len(answer["items"]) == 20  # type: ignore[arg-type]

        answers = jdk(url, BODY, "2", "changeit", authority.trust_store("changeit"))
        assert [answer[:2] for answer in answers] == [["HTTP_2", "200"]] * 2


def jdk(*arguments: str | Path) -> list[list[str]]:
    source = Path(__file__).with_name("Client.java")
    # A machine of few cores shares them with it.
    options = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto")
    lines = said(command("java"), *options, source, *arguments).splitlines()
    return [line.split(" ", 2) for line in lines]
