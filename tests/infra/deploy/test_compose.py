"""The compose file names what there is: files, settings, ports, commands.

No container runs here.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from compose_spec import PyCompose

from infra.deploy import objectives
from infra.deploy.rules import rules
from infra.kafka.jars import KAFKA_VERSION
from infra.settings import load_settings
from lifelong.cli import app
from tests.infra.deploy.conftest import Promtool
from tests.infra.deploy.dockerfile import ROOT, environment, stages

FOLDER = ROOT / "infra" / "deploy" / "compose"
COMPOSE = FOLDER / "compose.yaml"
TEXT = COMPOSE.read_text()
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(TEXT)["services"]
OURS = ("worker", "scorer", "loadtest")

ours = pytest.mark.parametrize("service", OURS)


def mounts() -> list[tuple[Path, str]]:
    """(file of ours, where a container has it)."""
    lines = [line.split(":") for one in SERVICES.values() for line in one.get("volumes", [])]
    return [(FOLDER / line[0], line[1]) for line in lines if line[0].startswith(".")]


def test_it_is_what_compose_reads() -> None:
    # Of what merges (<<) come to, which it does not read.
    PyCompose.from_yaml(yaml.safe_dump(yaml.safe_load(TEXT))).to_spec()


def test_every_file_that_is_mounted_is_there() -> None:
    assert len(mounts()) > 5
    assert [str(file) for file, _ in mounts() if not file.exists()] == []


@ours
def test_its_environment_is_settings(service: str) -> None:
    target = "scorer" if service == "scorer" else "worker"
    given = environment(target) | SERVICES[service]["environment"]

    settings = load_settings(environ=given, config=ROOT / "lifelong.example.toml")

    host, _, port = settings.broker.bootstrap.partition(":")
    assert f"PLAINTEXT://{host}:{port}" in SERVICES["kafka"]["environment"].values()
    assert settings.store.url.startswith("aerospike://aerospike:3000/")
    namespace = settings.store.url.rpartition("/")[2]
    conf = (FOLDER / "aerospike" / "aerospike.conf").read_text()
    assert f"namespace {namespace} {{" in conf


@ours
def test_no_more_may_be_written_than_in_tmp(service: str) -> None:
    assert SERVICES[service]["read_only"]
    assert SERVICES[service]["tmpfs"] == ["/tmp"]  # noqa: S108  # a container's own


@pytest.mark.parametrize("service", ["worker", "scorer"])
def test_its_port_is_the_one_that_is_asked(service: str) -> None:
    (port,) = [rest for word, rest in stages()[service] if word == "EXPOSE"]
    of = SERVICES[service]
    published = [str(one["target"]) for one in of.get("ports", [])]
    prometheus = yaml.safe_load((FOLDER / "prometheus" / "prometheus.yaml").read_text())
    scraped = {
        one["dns_sd_configs"][0]["names"][0]: str(one["dns_sd_configs"][0]["port"])
        for one in prometheus["scrape_configs"]
    }

    assert of["build"]["target"] == service
    assert published in ([], [port])
    assert scraped[service] == port
    assert f":{port}/" in of["healthcheck"]["test"][-1]


def test_the_image_is_built_where_its_dockerfile_is() -> None:
    for service in ("worker", "scorer"):
        build = SERVICES[service]["build"]
        assert (FOLDER / build["context"] / build["dockerfile"]).is_file()


def test_the_broker_is_of_the_version_that_tests_run() -> None:
    assert SERVICES["kafka"]["image"] == f"apache/kafka:{KAFKA_VERSION}"


def test_prometheus_takes_its_configuration_with_the_rules(
    promtool: Promtool, tmp_path: Path
) -> None:
    for file, place in mounts():
        if place.startswith("/etc/prometheus/"):
            (tmp_path / Path(place).name).write_text(file.read_text())

    promtool(tmp_path, "check", "config", "prometheus.yaml")


def test_the_jobs_are_those_of_the_rules() -> None:
    prometheus = yaml.safe_load((FOLDER / "prometheus" / "prometheus.yaml").read_text())
    jobs = {one["job_name"] for one in prometheus["scrape_configs"]}
    named = set(re.findall(r'job=~?\\?"([\w-]+\w)"', str(rules())))

    assert named <= jobs
    assert jobs == {"lifelong-worker", "lifelong-scorer"}


def test_alerts_of_each_severity_have_a_receiver() -> None:
    config = yaml.safe_load((FOLDER / "alertmanager" / "alertmanager.yaml").read_text())
    receivers = {one["name"] for one in config["receivers"]}

    assert {burn.severity for burn in objectives.BURNS} == receivers


def test_grafana_finds_the_dashboards() -> None:
    provider = yaml.safe_load((FOLDER / "grafana" / "dashboards.yaml").read_text())["providers"][0]
    (folder,) = [file for file, place in mounts() if place == provider["options"]["path"]]
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]

    assert (folder / Path(home).name).is_file()


def test_the_load_is_a_command_of_ours() -> None:
    command = typer.main.get_command(app)
    name, *options = SERVICES["loadtest"]["command"]
    known = {one for parameter in command.commands[name].params for one in parameter.opts}  # type: ignore[attr-defined]

    assert {option.partition("=")[0] for option in options} <= known
