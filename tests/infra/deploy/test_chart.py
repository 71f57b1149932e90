"""What the chart makes of values is what Kubernetes, Prometheus and we ourselves read."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from infra.deploy import rules
from infra.deploy.files import CHART
from infra.deploy.yaml import dump
from infra.settings import Settings, load_settings
from scorer.stopping import DRAIN_S
from tests.conftest import require
from tests.infra.deploy.conftest import Promtool
from tests.infra.deploy.dockerfile import ROOT, environment, health_check
from tests.infra.deploy.naming import named, series

FOLDER = ROOT / CHART
FILES = sorted(path.stem.removesuffix("-values") for path in (FOLDER / "ci").glob("*.yaml"))
VERSIONS = ("1.33", "1.37")
"""Of Kubernetes: the oldest and the newest whose schemas there are."""

Resource = dict[str, Any]

each = pytest.mark.parametrize("values", FILES)
parts = pytest.mark.parametrize("part", ["worker", "scorer"])


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    beside = Path(sys.executable).with_name("helm")
    program = shutil.which("helm") or (str(beside) if beside.exists() else None)
    require(program, "Helm: make helm")
    assert program is not None
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=False)


@functools.cache
def rendered(values: str) -> tuple[Resource, ...]:
    """The resources of one of the files."""
    file = FOLDER / "ci" / f"{values}-values.yaml"
    done = helm("template", "shop", str(FOLDER), "--namespace", "ranking", "--values", str(file))
    assert done.returncode == 0, done.stderr
    return tuple(one for one in yaml.safe_load_all(done.stdout) if one is not None)


def of_kind(values: str, *kinds: str) -> list[Resource]:
    return [one for one in rendered(values) if one["kind"] in kinds]


def pods(values: str) -> dict[str, Resource]:
    """The specification of pods, by the name of their only container."""
    found = [
        one["spec"]["template"]["spec"] for one in of_kind(values, "StatefulSet", "Deployment")
    ]
    return {pod["containers"][0]["name"]: pod for pod in found}


def settings(values: str, part: str) -> Settings:
    """What a container of ours would read."""
    (config,) = [one for one in of_kind(values, "ConfigMap") if "lifelong.toml" in one["data"]]
    secret = {
        "LIFELONG_STORE__URL": "aerospike://ann:secret@aerospike:3000/ssd",
        "LIFELONG_BROKER__SASL_PASSWORD": "secret",
        "LIFELONG_WORKER__MEMBER": f"shop-{part}-0",
    }
    given = environment(part)
    for one in pods(values)[part]["containers"][0]["env"]:
        if one["name"] != "LIFELONG_CONFIG":
            given[one["name"]] = one.get("value", secret.get(one["name"], ""))
    return load_settings(tomllib.loads(config["data"]["lifelong.toml"]), environ=given)


def test_there_are_values_to_look_at() -> None:
    assert FILES == ["minimal", "production", "scaled"]


@each
def test_helm_s_linter_finds_nothing(values: str) -> None:
    file = FOLDER / "ci" / f"{values}-values.yaml"
    done = helm("lint", "--strict", str(FOLDER), "--values", str(file))

    assert done.returncode == 0, done.stdout + done.stderr
    assert "[WARNING]" not in done.stdout


@each
@pytest.mark.parametrize("version", VERSIONS)
def test_resources_are_what_kubernetes_takes(values: str, version: str) -> None:
    looked_at = 0
    for one in rendered(values):
        if "." in one["apiVersion"].partition("/")[0].removesuffix(".k8s.io"):
            continue  # of CRDs
        kubernetes_validate.validate(one, version, strict=True)
        looked_at += 1
    assert looked_at >= 8


@each
@parts
def test_settings_are_read_and_fit_what_is_mounted(values: str, part: str) -> None:
    found = settings(values, part)
    pod = pods(values)[part]
    mounted = [one["mountPath"] for one in pod["containers"][0]["volumeMounts"]]
    named_paths = [found.bundle.path]
    if part == "worker":
        named_paths += [found.broker.ca_file, found.broker.cert_file]
    if part == "scorer":
        named_paths += [found.scorer.tls_cert, found.scorer.tls_key, found.scorer.keys]

    assert {one["name"] for one in pod["containers"][0]["volumeMounts"]} <= {
        one["name"] for one in pod["volumes"]
    }
    for path in named_paths:
        assert path is None or any(str(path).startswith(place) for place in mounted), path


def test_what_kafka_asks_for_is_in_files_of_workers_alone() -> None:
    secrets = {
        "saslPassword": "sasl_password",
        "oauthClientSecret": "oauth_client_secret",
        "brokerCa": "ca.pem",
        "brokerKeyPassword": "key_password",
    }
    given = [f"secrets.{name}.{what}" for name in secrets for what in ("name=kafka", f"key={name}")]
    done = helm(
        "template", "shop", str(FOLDER), "--set", ",".join([*given, "secrets.brokerTls.name=mine"])
    )
    found = {one["kind"]: one for one in yaml.safe_load_all(done.stdout) if one}

    mounted = {}
    for kind in ("StatefulSet", "Deployment"):
        volumes = found[kind]["spec"]["template"]["spec"]["volumes"]
        mounted[kind] = [
            (of["secret"]["name"], item["key"], item["path"])
            for one in volumes
            if "projected" in one
            for of in one["projected"]["sources"]
            for item in of["secret"]["items"]
        ]
    assert mounted["Deployment"] == []
    assert set(mounted["StatefulSet"]) == {
        *(("kafka", name, path) for name, path in secrets.items()),
        ("mine", "tls.crt", "tls.crt"),
        ("mine", "tls.key", "tls.key"),
    }


def test_what_is_given_is_what_is_read() -> None:
    found = settings("production", "scorer")

    assert found.events.fields["user_id"] == "payload.user.id"
    assert found.worker.group_bytes == 128 << 20
    assert found.store.ttl_s == 31_536_000
    assert found.broker.sasl_password is not None


@each
def test_ports_and_probes_are_where_services_answer(values: str) -> None:
    for part, pod in pods(values).items():
        found, (container,) = settings(values, part), pod["containers"]
        ports = {one["name"]: one["containerPort"] for one in container["ports"]}
        ours = {
            "metrics": found.worker.metrics_port,
            "api": found.scorer.port,
            "grpc": found.scorer.grpc_port,
            "admin": found.scorer.admin_port,
        }
        hosts = {found.worker.metrics_host, found.scorer.host} | (
            {found.scorer.admin_host} if "admin" in ports else set()
        )

        assert ports.items() <= ours.items()
        assert hosts == {"0.0.0.0"}  # of a pod
        live = "/" + health_check(part)[-1].split("/", 3)[3]
        for probe, path in (
            ("startupProbe", live),
            ("livenessProbe", live),
            ("readinessProbe", live.replace("live", "ready")),
        ):
            asked = container[probe]["httpGet"]
            assert asked["path"] == path
            assert asked["port"] in ports
            assert (asked["scheme"] == "HTTPS") == (
                part == "scorer" and found.scorer.tls_cert is not None
            )


@each
def test_a_scorer_has_the_time_that_its_clients_need_to_leave(values: str) -> None:
    grace = pods(values)["scorer"]["terminationGracePeriodSeconds"]

    assert grace > settings(values, "scorer").scorer.lame_duck_s + DRAIN_S + 2


@each
@parts
def test_containers_may_next_to_nothing(values: str, part: str) -> None:
    pod = pods(values)[part]

    assert pod["securityContext"]["runAsNonRoot"]
    assert not pod["automountServiceAccountToken"]
    for container in [*pod["containers"], *pod.get("initContainers", [])]:
        assert container["securityContext"] == {
            "readOnlyRootFilesystem": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"requests", "limits"} <= container["resources"].keys()


@each
def test_selectors_find_the_pods_of_one_part(values: str) -> None:
    labels = {
        one["spec"]["template"]["spec"]["containers"][0]["name"]: one["spec"]["template"][
            "metadata"
        ]["labels"]
        for one in of_kind(values, "StatefulSet", "Deployment")
    }
    for one in rendered(values):
        spec = one.get("spec", {})
        selector = spec.get("selector") or spec.get("podSelector")
        if selector is None:
            continue
        wanted = selector.get("matchLabels", selector).items()
        part = one["metadata"]["name"].rpartition("-")[2]
        assert [name for name, of in labels.items() if wanted <= of.items()] == [part]


def test_no_secret_is_made_and_each_is_named() -> None:
    text = json.dumps(rendered("production"))

    assert of_kind("production", "Secret") == []
    for name in ("kafka", "aerospike", "callers", "scorer-tls"):
        assert f'"{name}"' in text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("settings.store.lenght=5", "lenght"),
        ("settings.broker.sasl_password=secret", "sasl_password"),
        ("settings.store.url=aerospike://ann:secret@as:3000/ssd", "/settings/store/url"),
        ("settings.store.url=lmdb://here", "/settings/store/url"),
        ("worker.replica=3", "replica"),
        ("bundle.url=https://b/x.tar.gz", "bundle.sha256"),
        ("settings.scorer.tls_client_ca=/ca.pem", "tls_client_ca"),
        ("worker.autoscaling.enabled=true", "monitoring.prometheus"),
    ],
)
def test_values_that_cannot_be_are_refused(change: str, said: str) -> None:
    done = helm("template", "shop", str(FOLDER), "--set", change)

    assert done.returncode != 0
    assert said in done.stderr


def test_values_show_all_that_can_be_set() -> None:
    schema = json.loads((FOLDER / "values.schema.json").read_text())
    values = yaml.safe_load((FOLDER / "values.yaml").read_text())

    def missing(at: Mapping[str, Any], of: Any, place: str) -> Iterator[str]:
        at = schema["$defs"][at["$ref"].rpartition("/")[2]] if "$ref" in at else at
        for name, inner in at.get("properties", {}).items():
            if (place, name) in {("", "global"), ("", "settings")}:
                continue
            if name not in of:
                yield f"{place}.{name}"
            elif isinstance(of[name], dict):
                yield from missing(inner, of[name], f"{place}.{name}")

    assert list(missing(schema, values, "")) == []


def test_prometheus_is_given_the_rules_with_its_runbooks(
    promtool: Promtool, tmp_path: Path
) -> None:
    (resource,) = of_kind("scaled", "PrometheusRule")
    (tmp_path / "rules.yaml").write_text(dump(resource["spec"]))

    promtool(tmp_path, "check", "rules", "rules.yaml")
    assert resource["spec"] == rules.rules("https://wiki.example.com/lifelong/runbooks")


def test_pods_are_looked_at_under_the_names_of_the_rules() -> None:
    for monitor in of_kind("scaled", "PodMonitor"):
        part = monitor["metadata"]["name"].rpartition("-")[2]
        (endpoint,) = monitor["spec"]["podMetricsEndpoints"]

        assert endpoint["relabelings"] == [
            {"targetLabel": "job", "replacement": f"lifelong-{part}"}
        ]
        ports = pods("scaled")[part]["containers"][0]["ports"]
        assert endpoint["port"] in {port["name"] for port in ports}


def test_what_scales_is_there_and_asks_for_series_that_there_are(
    promtool: Promtool, tmp_path: Path
) -> None:
    kinds = {
        (one["kind"], one["metadata"]["name"])
        for one in of_kind("scaled", "StatefulSet", "Deployment")
    }
    queries = []
    for scaled in of_kind("scaled", "ScaledObject"):
        target = scaled["spec"]["scaleTargetRef"]
        assert (target["kind"], target["name"]) in kinds
        queries += [trigger["metadata"]["query"] for trigger in scaled["spec"]["triggers"]]

    asked = [{"record": f"asked:{place}", "expr": expr} for place, expr in enumerate(queries)]
    (tmp_path / "asked.yaml").write_text(dump({"groups": [{"name": "asked", "rules": asked}]}))
    promtool(tmp_path, "check", "rules", "asked.yaml")
    assert len(queries) == 3
    assert set().union(*map(named, queries)) <= series()


def test_what_scales_has_no_number_of_its_own() -> None:
    for one in of_kind("scaled", "StatefulSet", "Deployment"):
        assert "replicas" not in one["spec"]


def test_grafana_is_given_every_dashboard() -> None:
    found = [one["data"] for one in of_kind("scaled", "ConfigMap") if "grafana" in str(one)]
    boards = {name: text for data in found for name, text in data.items()}
    committed = {path.name: path.read_text() for path in (FOLDER / "files").glob("*.json")}

    assert boards.keys() == committed.keys()
    assert all(json.loads(boards[name]) == json.loads(text) for name, text in committed.items())
    assert max(map(len, boards.values())) < 1 << 20  # what a ConfigMap holds


def test_who_may_ask_reaches_the_ports_and_nobody_else_does() -> None:
    policies = {
        one["metadata"]["name"].rpartition("-")[2]: one["spec"]
        for one in of_kind("production", "NetworkPolicy")
    }
    metrics, clients = policies["scorer"]["ingress"]

    assert [port["port"] for port in metrics["ports"]] == [8082]
    assert [port["port"] for port in clients["ports"]] == [8080, 8081]
    assert clients["from"] == [{"podSelector": {"matchLabels": {"app": "shop"}}}]
    assert [port["port"] for port in policies["worker"]["ingress"][0]["ports"]] == [9101]
    assert [port["port"] for port in policies["worker"]["egress"][1]["ports"]] == [9094, 3000, 443]
