"""The schema of the chart's values: what can be set of a deployment, and of Lifelong itself.

`settings` are those of `infra.settings`, less what is secret: a mistyped one is refused by Helm,
before anything starts. The defaults stand in the chart's values.yaml, with what each means.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from infra.settings import Positive, Section, Settings, secret_keys

Free = dict[str, Any]
"""What Kubernetes itself checks."""

Peers = list[Free]


class Image(Section):
    """Where images come from."""

    registry: str = ""
    worker: str = ""
    scorer: str = ""
    tag: str = ""
    pullPolicy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    pullSecrets: list[Free] = []


class SecretKey(Section):
    """One entry of a Secret that is there."""

    name: str = ""
    key: str = ""


class SecretName(Section):
    """A Secret that is there."""

    name: str = ""


class Secrets(Section):
    """What is secret, by reference alone."""

    saslPassword: SecretKey = SecretKey()
    oauthClientSecret: SecretKey = SecretKey()
    storeUrl: SecretKey = SecretKey()
    brokerCa: SecretKey = SecretKey()
    brokerTls: SecretName = SecretName()
    brokerKeyPassword: SecretKey = SecretKey()
    keys: SecretKey = SecretKey()
    tls: SecretName = SecretName()


class BundleSource(Section):
    """Where the bundle comes from."""

    volume: Free = {}
    path: str = ""
    url: Annotated[str, Field(pattern=r"^(https?://[^@\s]+)?$")] = ""
    sha256: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""


class Autoscaling(Section):
    """By KEDA."""

    enabled: bool = False
    min: Positive = 1
    max: Positive = 1
    target: Annotated[float, Field(gt=0)] = 1


class ScorerAutoscaling(Autoscaling):
    """The same, by two figures."""

    queueSeconds: Annotated[float, Field(gt=0)] = 1


class Pods(Section):
    """What worker and scorer have alike."""

    replicas: Annotated[int, Field(ge=0)] = 1
    resources: Free = {}
    autoscaling: Autoscaling = Autoscaling()
    disruptionBudget: Free = {}
    podAnnotations: dict[str, str] = {}
    nodeSelector: dict[str, str] = {}
    tolerations: list[Free] = []
    affinity: Free = {}


class Worker(Pods):
    """The StatefulSet."""

    staticMembership: bool = True


class Service(Section):
    """How clients reach scorers."""

    type: Literal["ClusterIP", "LoadBalancer", "NodePort"] = "ClusterIP"
    annotations: dict[str, str] = {}


class Scorer(Pods):
    """The Deployment."""

    autoscaling: ScorerAutoscaling = ScorerAutoscaling()
    service: Service = Service()


class NetworkPolicy(Section):
    """Who may talk to whom."""

    enabled: bool = True
    clients: Peers = []
    monitoring: Peers = []
    egress: list[Free] = []


class Monitoring(Section):
    """What Prometheus' operator and Grafana's are given."""

    serviceMonitors: bool = False
    rules: bool = False
    dashboards: bool = False
    labels: dict[str, str] = {}
    dashboardLabels: dict[str, str] = {}
    interval: str = "15s"
    runbooks: str = ""
    prometheus: str = ""


class Values(Section):
    """All of the chart's values."""

    nameOverride: str = ""
    image: Image = Image()
    settings: Settings = Settings()
    secrets: Secrets = Secrets()
    bundle: BundleSource = BundleSource()
    worker: Worker = Worker()
    scorer: Scorer = Scorer()
    networkPolicy: NetworkPolicy = NetworkPolicy()
    monitoring: Monitoring = Monitoring()
    global_: Annotated[Free, Field(alias="global")] = {}


def schema() -> dict[str, Any]:
    """As JSON Schema."""
    found = Values.model_json_schema()
    definitions = found["$defs"]
    for section, name in secret_keys():
        of = Settings.model_fields[section].annotation
        assert of is not None
        del definitions[of.__name__]["properties"][name]
    store = definitions["StoreSettings"]["properties"]["url"]
    # Pods are on several machines, an LMDB store is on one; and a password is for a Secret.
    store["pattern"] = "^aerospike://[^@]*$"
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **_plain(found)}


def _plain(value: Any) -> Any:
    """Without defaults and titles: the former stand in values.yaml, the latter say nothing."""
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if not isinstance(value, dict):
        return value
    of = {name: _plain(one) for name, one in value.items() if name not in {"default", "title"}}
    if "properties" in value:  # whose names are no keywords
        of["properties"] = {name: _plain(one) for name, one in value["properties"].items()}
    return of
