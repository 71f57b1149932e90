"""Settings: what can be chosen, its defaults, and the one place where they are read.

Each setting comes from the first of: a flag (the overrides of `load_settings`), the environment
(``LIFELONG_BROKER__BOOTSTRAP``), the file (``lifelong.toml`` in the working directory, or the one
named by ``--config`` or ``LIFELONG_CONFIG``), its default here. An unknown name is an error
wherever it stands: a misspelt setting that is quietly ignored is found in production.

One file, though a long one: every setting stands here with its meaning, so that who looks for one
reads a single page, and so does the example file, which is made from it.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_serializer,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, EnvSettingsSource, NoDecode, SettingsConfigDict

from infra.behaviors import DEFAULT_ACTIONS, ActionNames
from infra.errors import SettingsError, hint, nearest, one_line
from infra.secrets import FILE, read_secret, resolve

ENV_PREFIX: Final = "LIFELONG_"
ENV_CONFIG: Final = "LIFELONG_CONFIG"
DEFAULT_FILE: Final = Path("lifelong.toml")
MASK: Final = "**********"

SHOWN_CHARS: Final = 120
"""Characters of a bad value that an error shows: a list of names may be long."""

EVENT_FIELDS: Final = (
    "event_id",
    "user_id",
    "item_id",
    "action",
    "event_time",
    "category_id",
    "dwell_ms",
    "source",
)
"""Our names for the fields of a behavior event."""

STORE_SCHEMES: Final = ("memory", "lmdb", "aerospike", "redis", "rediss")

# A Kubernetes Service or a linked container named lifelong-scorer puts LIFELONG_SCORER_PORT and
# its like into every pod beside it. Those are nobody's settings and nobody's mistake.
_SERVICE_LINK: Final = re.compile(
    r"_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_PROTO|_PORT|_ADDR)?)$"
)
_SERVICE_LINK_VALUE: Final = re.compile(r"^(tcp|udp|sctp)://")

Positive = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Port = Annotated[int, Field(ge=0, le=65535)]
Word = Annotated[str, Field(pattern=r"^[^\s,=]+$")]
TopicName = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,249}$")]
UnknownItems = Literal["score", "last", "refuse"]
"""What becomes of candidates that the bundle does not know: scored by what it learned of items that
it had not met, given a CTR of 0 and so ranked below all others, or the whole request refused."""


def _as_values(value: object) -> object:
    return (value,) if isinstance(value, str | int | float) else value


Values = Annotated[tuple[str | int | bool | float, ...], BeforeValidator(_as_values)]
"""A value, or several, of any kind."""
Upper = BeforeValidator(lambda value: value.upper() if isinstance(value, str) else value)
Lower = BeforeValidator(lambda value: value.lower() if isinstance(value, str) else value)


def mask_url(url: str) -> str:
    """The URL with its password, if it has one, replaced by asterisks."""
    return re.sub(r"(://[^:/@]*:).*@", rf"\1{MASK}@", url)


class Section(BaseModel):
    """One group of settings: frozen, and strict about names."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
        hide_input_in_errors=True,
    )


_LOGINS: Final = (
    ("sasl_username", "sasl_password"),
    ("oauth_token_url", "oauth_client_id", "oauth_client_secret"),
)
"""What a login takes: by a password, or by a token."""


class BrokerSettings(Section):
    """Kafka: where it is, how to enter, and the names of topics and group."""

    bootstrap: str = "127.0.0.1:9092"
    """Brokers to ask first, HOST:PORT[,HOST:PORT...]."""
    topic: TopicName = "behaviors"
    """Topic of behavior events, keyed by user id."""
    dead_letter_topic: TopicName = "behaviors.dead"
    """Topic that takes the events that could not be read, each with its reason."""
    dead_letter_retention_s: Annotated[int, Field(ge=0)] = 30 * 86_400
    """Seconds for which events that could not be read are kept, in a topic that is created by us;
    0: for ever. Users who are to be forgotten are in these events, too."""
    forget_tombstones: bool = False
    """Whether `lifelong forget` sends a tombstone of each user to `topic`, so that Kafka takes what
    it has of them away. For a topic that is compacted. Workers then count records without a
    payload, and refuse them no longer."""
    group: Annotated[str, Field(min_length=1, max_length=255)] = "lifelong"
    """Consumer group of the workers."""
    create_topics: bool = False
    """Whether a worker creates topics that are not there; otherwise that is an error, since a
    mistyped name is not to become a topic. `lifelong broker` and `lifelong demo` create theirs."""
    partitions: Positive = 8
    """Partitions of a topic that is created by us; an existing topic keeps its own."""
    replication: Positive = 1
    """Copies of each partition of a topic that is created by us."""
    security_protocol: Annotated[
        Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"], Upper
    ] = "PLAINTEXT"
    """How to speak to the brokers: PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL."""
    sasl_mechanism: (
        Annotated[Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"], Upper] | None
    ) = None
    """How to log in: PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER; needed with SASL_*."""
    sasl_username: str | None = None
    """User name to log in with; needed with PLAIN and SCRAM."""
    sasl_password: SecretStr | None = None
    """Password to log in with; needed with PLAIN and SCRAM. Shown masked; file:PATH: what is in
    that file."""
    ca_file: Path | None = None
    """Certificate authorities (PEM) to trust with SSL; none: those of the system."""
    cert_file: Path | None = None
    """Certificate (PEM, with those between it and its authority) to show to brokers that ask for
    one."""
    key_file: Path | None = None
    """Key (PEM) of the certificate; none: it is in cert_file, too."""
    key_password: SecretStr | None = None
    """Password that the key is encrypted with. Shown masked; file:PATH: what is in that file."""
    oauth_token_url: Annotated[str, Field(pattern=r"^https?://[^@\s]+$")] | None = None
    """Where tokens are asked for, by OAuth's grant for clients; needed with OAUTHBEARER."""
    oauth_client_id: str | None = None
    """Client to ask for tokens as; needed with OAUTHBEARER."""
    oauth_client_secret: SecretStr | None = None
    """The client's secret; needed with OAUTHBEARER. Shown masked; file:PATH: what is in that
    file."""
    oauth_scope: str | None = None
    """Scope to ask for; none: the server's default."""
    oauth_ca_file: Path | None = None
    """Certificate authorities (PEM) to trust at oauth_token_url; none: those of the system."""
    oauth_extensions: Mapping[Word, Word] = {}
    """What brokers want to be told beside the token, name = value; of some hosted ones, for
    example, the cluster's id."""

    @field_validator("bootstrap")
    @classmethod
    def _check_bootstrap(cls, value: str) -> str:
        for address in value.split(","):
            host, _, port = address.strip().rpartition(":")
            if not host or not port.isdigit() or not 0 < int(port) < 65536:
                raise ValueError("must be HOST:PORT[,HOST:PORT...]")
        return value

    @model_validator(mode="after")
    def _check_sasl(self) -> BrokerSettings:
        if self.security_protocol.startswith("SASL_"):
            wanted = ("sasl_mechanism", *_LOGINS[self.sasl_mechanism == "OAUTHBEARER"])
            missing = [name for name in wanted if getattr(self, name) is None]
            if missing:
                raise ValueError(f"{self.security_protocol} needs {', '.join(missing)} too")
        if self.cert_file is None and (self.key_file or self.key_password):
            raise ValueError("key_file and key_password need cert_file too")
        return self


class StoreSettings(Section):
    """Where sequences and interests live."""

    url: str = "lmdb://.lifelong/store"
    """memory://, lmdb://PATH[?max_size=BYTES&sync=1],
    aerospike://[USER:PASSWORD@]HOST:PORT[,HOST:PORT]/NAMESPACE[?set=NAME] or
    redis[s]://[USER:PASSWORD@]HOST[:PORT][/DATABASE][?prefix=NAME&cluster=1&ca=FILE]. A password is
    shown masked. file:PATH: what is in that file when the process starts."""
    length: Positive = 1000
    """Behaviors kept per user; older ones go."""
    ttl_s: Annotated[int, Field(ge=0)] = 0
    """Seconds after a user's last behavior at which their records may go; 0: never."""
    states: Annotated[int, Field(ge=1, le=32)] = 3
    """Bundles whose interest states are kept of a user. While one is exchanged for another, or two
    serve side by side, each finds its own; the one longest not written goes."""
    name: Annotated[str, Field(min_length=1, max_length=100)] = "lifelong"
    """Name that a store is given when it is made, for people."""
    id: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")] | None = None
    """Id that the store must have, as `lifelong check` shows it, so that a mistyped URL does not
    open another; none: any."""

    @field_validator("url", mode="before")
    @classmethod
    def _read_url(cls, value: object) -> object:
        try:
            return resolve(value) if isinstance(value, str) else value
        except SettingsError as error:
            raise ValueError(str(error)) from None

    @field_validator("url")
    @classmethod
    def _check_url(cls, value: str) -> str:
        scheme, separator, _ = value.partition("://")
        if not separator or scheme not in STORE_SCHEMES:
            raise ValueError(f"must begin with {_choice(f'{s}://' for s in STORE_SCHEMES)}")
        return value

    @field_serializer("url")
    def _dump_url(self, value: str) -> str:
        return mask_url(value)

    @property
    def masked_url(self) -> str:
        """The URL as it may be shown and logged."""
        return mask_url(self.url)

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            yield name, mask_url(value) if name == "url" else value


MAX_READ_BYTES: Final = 256 << 20
"""Unless set, the largest file of a bundle that is read into memory."""


class BundleSettings(Section):
    """The model bundle in service."""

    path: Path | None = None
    """Directory of the bundle; none: the one that comes with Lifelong."""
    version: Annotated[str, Field(pattern=r"^[0-9a-f]{8,32}$")] | None = None
    """Version that the bundle must be, or at least 8 digits from its beginning, as `lifelong check`
    shows it; none: any."""
    public_key: Path | None = None
    """PEM file of ed25519 public keys: a bundle that none of them has signed (`lifelong sign`) is
    refused, at the start and when it is exchanged. None: bundles need no signature."""
    poll_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 10.0
    """How often a running process looks whether another bundle is at path; once two looks find the
    same one, all of it, it takes its place. 0: only when asked (SIGHUP)."""
    max_read_bytes: Positive = MAX_READ_BYTES
    """Largest file of a bundle that is read into memory: graphs, golden requests, the manifest. A
    larger one is refused unread. Tables are mapped, whatever their size."""


class WorkerSettings(Section):
    """The worker: consuming behaviors and keeping interests fresh."""

    fetch_max: Positive = 4000
    """Most records taken from a partition at once."""
    group_bytes: Positive = 64 << 20
    """Memory that events may take which are decoded and wait to be written, or are. All that came
    while one transaction was written goes into the next; at most about half of this."""
    session_timeout_s: Seconds = 10.0
    """Silence after which the broker gives a worker's partitions to others."""
    member: Annotated[str, Field(min_length=1, max_length=249)] | None = None
    """Name of this worker in its group, which no other worker has and which stays with it over a
    restart (of a pod of a StatefulSet, for example): who is back within session_timeout_s goes on
    with the same partitions, and nobody else's move. None: partitions of one that stops go to
    others at once."""
    source: str | None = None
    """Names of the sources ([[sources]]) that this worker reads, comma separated. None: all."""
    recluster_threads: Annotated[int, Field(ge=0)] = 1
    """Threads that recluster users; 0: this worker reclusters nobody, and tells how long its users
    wait until another one does."""
    renew_per_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 500.0
    """Most users a second made due after the bundle was exchanged, since their interests are of
    another one. Looking for them takes half of a thread's time at most."""
    renew_again_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 86_400.0
    """Time after which all users are looked at again, for interests that the store has lost; 0:
    never. Each worker reads all users for it."""
    recluster_poll_s: Seconds = 0.1
    """Pause between two looks for due users when there were none due."""
    recluster_batch: Positive = 1024
    """Most users whose interests are written together, in one transaction."""
    retry_max_s: Seconds = 5.0
    """Longest pause between two tries of a store write; the first pause is much shorter."""
    metrics_host: str = "127.0.0.1"
    """Address for /metrics and /health."""
    metrics_port: Port = 9101
    """Port for /metrics and /health; 0: any free one."""
    check_s: Seconds = 3.0
    """How often the broker and the store are asked whether they are there. A broker may take twice
    as long to answer."""
    held_max_s: Seconds = 120.0
    """Time for which a producer's open transaction may hold a partition back before the worker
    reports itself as not ready. Producers' own limit is a minute unless they set it."""
    stall_s: Seconds = 60.0
    """Time without progress, while there are records to read, after which the worker reports
    itself as not live."""


MAX_ITEM_BYTES: Final = 256
"""Longest item id in UTF-8 bytes. Events with longer ones never enter a sequence
(`EventSettings.max_id_bytes`), so none can be known."""

BODY_BYTES: Final = 4_096
"""What a request has beside its candidates: user, time, wishes, and the names of all of them."""


def enough_body_bytes(scorer: Mapping[str, Any]) -> int:
    """The bytes of a request with as many candidates, of the greatest length, as are taken.

    They are counted as UTF-8 text between quotes, with a comma and a space; the binary form of Open
    Inference has four bytes beside an id as well.

    >>> enough_body_bytes({"max_candidates": 10_000})
    2604096
    """
    return BODY_BYTES + int(scorer["max_candidates"]) * (MAX_ITEM_BYTES + 4)


class ScorerSettings(Section):
    """The scorer: its address and its limits."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: Port = 8080
    """Port to listen on, /metrics and /health included; 0: any free one."""
    grpc_port: Port = 0
    """Port on which to speak the Open Inference Protocol over gRPC, as in 8081; 0: it is not
    spoken."""
    admin_port: Port = 0
    """Port for operators, as in 8082: /metrics, which is then there alone, and what else is not for
    clients. 0: there is none."""
    admin_host: str = "127.0.0.1"
    """Address to listen on for operators."""
    processes: Positive = 1
    """Scorer processes; one a core is right, since each request is scored by one thread."""
    tls_cert: Path | None = None
    """PEM file with the certificate to show, and those between it and its authority: the port then
    speaks TLS alone. It is followed, as the two below are: new connections get what it holds now.
    None: no TLS."""
    tls_key: Path | None = None
    """PEM file with the key of tls_cert, not encrypted; None: it is in the same file."""
    tls_client_ca: Path | None = None
    """PEM file with the authorities of clients: who has no certificate of theirs is not served, no
    probe either (mTLS). None: clients need no certificate."""
    keys: Path | None = None
    """TOML file of API keys: names, hashes and what each may ask for. Whoever has none of them is
    refused with 401, but for probes of health. It is read again when it changes. None: nobody is
    asked."""
    jwt_issuer: str | None = None
    """Issuer whose tokens (JWT) are taken, as they say it in iss: callers with such a token need no
    key. None: none are; else jwt_audience and jwt_keys are needed, too."""
    jwt_audience: str | None = None
    """Audience that tokens must be for, as they say it in aud."""
    jwt_keys: str | None = None
    """The issuer's public keys (JWKS): a file, or an https URL."""
    open_metrics: bool = True
    """Whether /metrics answers to anybody where others are asked for their keys; otherwise a key
    needs the scope admin for it."""
    max_connections: Positive = 4096
    """Most connections open to a process; further ones wait until one closes, or a sibling takes
    them."""
    idle_timeout_s: Seconds = 75.0
    """How long a connection without a request stays open, gRPC's too. Make it longer than the
    balancer in front keeps its own idle ones (mostly 60 s), or requests get lost in the closing."""
    lame_duck_s: NotNegative = 5.0
    """Time from SIGTERM on in which requests are still taken, while readiness says no and answers
    ask clients to connect anew. Make it longer than a balancer takes to notice: its interval of
    probes times the failures it waits for; under Kubernetes, which takes an endpoint away
    meanwhile, some seconds. Whoever kills what does not end waits longer than this and 12 s
    together (terminationGracePeriodSeconds). 0: nobody balances."""
    max_candidates: Positive = 10_000
    """Most candidates in one request."""
    max_body_bytes: Positive = Field(default_factory=enough_body_bytes)
    """Largest request body, before and after it is decompressed. Unless set, what max_candidates
    ids of the greatest length take."""
    compress_bytes: Positive = 131_072
    """Smallest answer that is compressed where the client accepts that, as most do unasked. What is
    saved of less takes longer to compress than to send over a network of 1 Gb/s."""
    max_waiting: Positive = 256
    """Requests that may wait for a process, whose bodies it holds; the next is refused with 429.
    As a rule time bounds them: who cannot be answered by the deadline is refused, too."""
    deadline_s: Seconds = 2.0
    """Time within which a request is answered or, once taken on, given up with 503; less where it
    says so itself (x-request-timeout-ms, x-envoy-expected-rq-timeout-ms, grpc-timeout)."""
    store_timeout_s: Seconds = 0.1
    """Time within which a server that is the store must have answered a read."""
    without_store: Literal["degrade", "refuse"] = "degrade"
    """What becomes of rankings while the store does not answer: scored without the user's history
    and marked as degraded, or refused with 503."""
    unknown_items: UnknownItems = "score"
    """What becomes of candidates that the bundle does not know, where a request does not say:
    "score" them by what it learned of new items, put them "last" with a CTR of 0, or "refuse" the
    request with 422."""
    sampled: Annotated[float, Field(ge=0, le=1)] = 0.001
    """Share of the rankings of known users whose quality is measured after the answer
    (lifelong_scorer_sampled_ratio, lifelong_scorer_sampled_nats): TWIN's hit rate, ENCODE's
    relevance indicator. 0: none."""

    @property
    def asks_callers(self) -> bool:
        """Whether whoever asks is asked who they are."""
        return self.keys is not None or self.jwt_issuer is not None

    @field_validator("jwt_keys")
    @classmethod
    def _check_jwt_keys(cls, value: str | None) -> str | None:
        if value is not None and "://" in value and "@" in value.partition("://")[2].split("/")[0]:
            raise ValueError("must hold no password; public keys need none")
        return value


FormatName = Literal[
    "json",
    "cloudevents",
    "segment",
    "snowplow",
    "debezium",
    "avro",
    "protobuf",
    "json_schema",
]
"""How a record holds events: the modules of `streaming.events.formats`."""

_EXPRESSION: Final = re.compile(r"""[\[\]|*"`&{}]|\w\(""")
"""What is in no name, nor in names joined by dots, but in JMESPath."""
_STEPS: Final = re.compile(r"[^.\[\]]+(\[-?\d{1,9}\]|\.[^.\[\]]+)*")
"""Names joined by dots, and places in arrays."""


def is_stepped(path: str) -> bool:
    """Whether a path steps from name to name, or to a place in an array, and no more.

    >>> is_stepped("payload.items[0].sku"), is_stepped("items[?price > `9`].sku | [0]")
    (True, False)
    """
    return not _EXPRESSION.search(re.sub(r"\[-?\d{1,9}\]", "", path)) and bool(
        _STEPS.fullmatch(path)
    )


class EventSettings(Section):
    """How a platform's own events become behaviors, without code."""

    format: FormatName = "json"
    """What a record holds: json (one event, an array, or one a line), cloudevents, segment,
    snowplow (enriched, TSV), debezium; avro, protobuf or json_schema by the schemas of a registry
    ([registry]). A format brings the paths that are usual in it; what is set here goes before
    them."""
    key: Literal["user", "any"] = "user"
    """What a record's key must be: the id of the user, or anything. Kafka keeps the order of
    records only within a partition, which the key chooses: with "any" a user's events may come out
    of their order, and their sequence has them as they came."""
    fields: dict[str, str | tuple[str, ...]] = Field(default_factory=dict)
    """Our field's name to the platform's, or to a list of which the first counts that is there
    (["userId", "anonymousId"]). A dot steps into an object, a number into an array
    ("payload.items[0].sku"), and what is more is JMESPath. Our fields: event_id, user_id, item_id,
    action, event_time, category_id, dwell_ms, source. A field not listed has our name."""
    split: str = ""
    """Path of an array in an event of which each element is an event of its own: it stands in the
    place of the array then, so that its sku is "items.sku" if this is "items". Empty: none."""
    only: dict[str, Values] = Field(default_factory=dict)
    """Path to the value, or the values, that it has in events which are behaviors; others are
    ignored: counted, and no dead letters."""
    ignore: dict[str, Values] = Field(default_factory=dict)
    """Path to the value, or the values, that it has in events which are ignored."""
    action_names: Annotated[tuple[str, ...], NoDecode] = DEFAULT_ACTIONS.names
    """The platform's actions, up to 255. Behaviors are stored with an action's place in this list:
    add names at its end alone, and remove none."""
    actions: dict[str, str] = Field(default_factory=dict)
    """An action as events spell it to the name declared in action_names; one not listed here must
    be declared itself."""
    constants: dict[str, str | int] = Field(default_factory=dict)
    """Our field's name to the value it has when the event does not carry it (action = "click")."""
    time_unit: Literal["s", "ms", "us", "iso"] = "ms"
    """What event_time counts since 1970, or "iso" for ISO 8601 text."""
    earliest: datetime = datetime(2000, 1, 1, tzinfo=UTC)
    """Events before this are rejected."""
    max_ahead_s: Annotated[int, Field(ge=0)] = 86_400
    """Events further than this in the future are rejected."""
    max_id_bytes: Annotated[int, Field(ge=1, le=MAX_ITEM_BYTES)] = MAX_ITEM_BYTES
    """Longest user, item, event or category id in UTF-8 bytes."""
    max_event_bytes: Positive = 65_536
    """Largest record, whether it holds one event or several."""

    @property
    def said(self) -> str:
        """The source's name, for metrics and for people."""
        return "default"

    @property
    def section(self) -> str:
        """Where it stands in the settings, for people."""
        return "events"

    def single_names(self) -> dict[str, str]:
        """Our name of each field to the one name, or dotted path, that it has in events: for who
        reads columns, or sends events.

        Raises:
            SettingsError: a field has several, or an expression.
        """
        names: dict[str, str] = {}
        for name in EVENT_FIELDS:
            theirs = self.fields.get(name, name)
            if not isinstance(theirs, str) or "[" in theirs or not is_stepped(theirs):
                raise SettingsError(
                    f"{self.section}.fields: {name} = {theirs!r}: one name or dotted path is needed"
                    " here; give settings with such a one (--config)"
                )
            names[name] = theirs
        return names

    @field_validator("fields")
    @classmethod
    def _check_fields(
        cls, value: dict[str, str | tuple[str, ...]]
    ) -> dict[str, str | tuple[str, ...]]:
        _check_event_fields(value)
        for name, theirs in value.items():
            if not theirs:
                raise ValueError(f"{name} = {theirs!r} names nothing")
            for path in (theirs,) if isinstance(theirs, str) else theirs:
                _check_path(f"{name} = {path!r}", path)
        return value

    @field_validator("split")
    @classmethod
    def _check_split(cls, value: str) -> str:
        if value and ("[" in value or not is_stepped(value)):
            raise ValueError("must be names joined by dots, as in payload.items")
        return value

    @field_validator("only", "ignore")
    @classmethod
    def _check_rule(cls, value: dict[str, Values]) -> dict[str, Values]:
        for path in value:
            _check_path(repr(path), path)
        return value

    @field_validator("action_names", mode="before")
    @classmethod
    def _read_action_names(cls, value: object) -> object:
        if isinstance(value, str):  # of a flag or the environment
            try:
                value = json.loads(value)
            except ValueError:
                value = None
        if not isinstance(value, list | tuple) or not all(isinstance(one, str) for one in value):
            raise ValueError('must be a list of names, as in ["view", "purchase"]')
        return ActionNames(tuple(value)).names

    @field_validator("actions")
    @classmethod
    def _check_actions(cls, value: dict[str, str], info: ValidationInfo) -> dict[str, str]:
        for declared in value.values():
            _check_declared(declared, info)
        return value

    @field_validator("constants")
    @classmethod
    def _check_constants(
        cls, value: dict[str, str | int], info: ValidationInfo
    ) -> dict[str, str | int]:
        _check_event_fields(value)
        if "action" in value:
            _check_declared(str(value["action"]), info)
        return value

    @field_validator("earliest", mode="before")
    @classmethod
    def _read_earliest(cls, value: object) -> object:
        try:
            text = value if isinstance(value, str) else value.isoformat()  # type: ignore[attr-defined]
            moment = datetime.fromisoformat(text)
        except (AttributeError, ValueError):
            raise ValueError("must be a date like 2000-01-01") from None
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)

    @property
    def declared_actions(self) -> ActionNames:
        """`action_names`, with their codes."""
        return ActionNames(self.action_names)

    @property
    def earliest_ms(self) -> int:
        """`earliest` in ms since epoch."""
        return int(self.earliest.timestamp() * 1000)


class SourceSettings(EventSettings):
    """A topic of events, and how they become behaviors: an entry of [[sources]].

    It has all that [events] has. Limits and action_names that it does not say are those of
    [events]; the rest has its defaults.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
    """Name by which `--source` and metrics know it."""
    topic: TopicName
    """Topic of its records."""
    dead_letter_topic: TopicName | None = None
    """Topic that takes its events which could not be read; none: broker.dead_letter_topic."""

    @property
    def said(self) -> str:
        """The source's name, for metrics and for people."""
        return self.name

    @property
    def section(self) -> str:
        """Where it stands in the settings, for people."""
        return f"sources.{self.name}"


SHARED: Final = ("action_names", "earliest", "max_ahead_s", "max_id_bytes", "max_event_bytes")
"""What a source has of [events] where it does not say it itself: limits, and the names of actions,
which are the store's."""


class RegistrySettings(Section):
    """The Schema Registry, by whose schemas records in Avro, Protobuf or JSON Schema are read."""

    url: str | None = None
    """URLs, comma separated: where one does not answer, the next is asked. It takes the packages of
    the extra "registry". None: there is no registry."""
    username: str | None = None
    """User name to log in with (basic); a password is needed with it."""
    password: SecretStr | None = None
    """Password to log in with. Shown masked."""
    password_file: Path | None = None
    """File with the password, instead."""
    token: SecretStr | None = None
    """Token to log in with (bearer). Shown masked."""
    token_file: Path | None = None
    """File with the token, instead. It is read whenever a schema is asked for, as all files here
    are, so it may be renewed."""
    cluster: str = ""
    """What a registry of Confluent Cloud is told beside a token, its logical cluster (lsrc-...)."""
    identity_pool: str = ""
    """The same, the identity pool (pool-...)."""
    ca_file: Path | None = None
    """Certificate authorities (PEM) to trust with https; none: those of the package certifi."""
    cert_file: Path | None = None
    """Certificate (PEM) to show with https; none: none is shown."""
    key_file: Path | None = None
    """Its key (PEM), not encrypted; none: it is in the same file."""
    timeout_s: Seconds = 5.0
    """Time within which each URL has to answer."""

    @field_validator("url")
    @classmethod
    def _check_url(cls, value: str | None) -> str | None:
        for one in (value or "").split(",") if value is not None else ():
            address = urlsplit(one.strip())
            if address.scheme not in {"http", "https"} or not address.hostname:
                raise ValueError("must be URLs as in http://127.0.0.1:8081")
            if "@" in address.netloc:
                raise ValueError("must hold no password; username and password_file can")
        return value

    @model_validator(mode="after")
    def _check_secrets(self) -> RegistrySettings:
        for name in ("password", "token"):
            if getattr(self, name) is not None and getattr(self, f"{name}_file") is not None:
                raise ValueError(f"{name} and {name}_file are both set; one of them is enough")
        named = self.username is not None
        if named != (self.password is not None or self.password_file is not None):
            raise ValueError("username needs password or password_file, and they need it")
        if named and (self.token is not None or self.token_file is not None):
            raise ValueError("username and token are both set; a registry takes one of them")
        if self.key_file is not None and self.cert_file is None:
            raise ValueError("key_file needs cert_file")
        return self

    def secret(self, name: Literal["password", "token"]) -> str:
        """The password or the token, wherever it is; empty: there is none.

        Raises:
            SettingsError: as `infra.secrets.read_secret`.
        """
        file: Path | None = getattr(self, f"{name}_file")
        value: SecretStr | None = (
            getattr(self, name) if file is None else SecretStr(f"{FILE}{file}")
        )
        return "" if value is None else read_secret(f"registry.{name}", value)


class LogSettings(Section):
    """What is logged and how it looks."""

    level: Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], Upper] = "INFO"
    """Least severity that is logged: DEBUG, INFO, WARNING, ERROR or CRITICAL."""
    format: Annotated[Literal["auto", "json", "console"], Lower] = "auto"
    """json: one object a line; console: for people; auto: console on a terminal, else json."""
    users: bool = False
    """Whether lines name users by their ids, where something is the matter with one. Otherwise they
    say the first 8 digits of the id's SHA-256, by which a user can be looked for, not read."""


class TracingSettings(Section):
    """Where traces go, and of how much there are any."""

    endpoint: str | None = None
    """URL of a receiver of traces (OTLP over HTTP), to which /v1/traces is added where it has no
    path. It takes the packages of the extra "tracing". None: nothing is traced."""
    sample: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Share of the rankings, and of the transactions of events, that are traced where their senders
    say nothing; whoever sends a traceparent decides for its own."""

    @field_validator("endpoint")
    @classmethod
    def _check_endpoint(cls, value: str | None) -> str | None:
        if value is None:
            return None
        address = urlsplit(value)
        if address.scheme not in {"http", "https"} or not address.hostname:
            raise ValueError("must be a URL as in http://127.0.0.1:4318")
        if "@" in address.netloc:
            raise ValueError("must hold no password; OTEL_EXPORTER_OTLP_HEADERS can hold one")
        return value


class Settings(Section):
    """All settings of a Lifelong process. Constructing it reads nothing; see `load_settings`."""

    broker: BrokerSettings = Field(default_factory=BrokerSettings)
    """Kafka."""
    store: StoreSettings = Field(default_factory=StoreSettings)
    """Sequences and interests."""
    bundle: BundleSettings = Field(default_factory=BundleSettings)
    """The model."""
    worker: WorkerSettings = Field(default_factory=WorkerSettings)
    """From events to interests."""
    scorer: ScorerSettings = Field(default_factory=ScorerSettings)
    """From interests to CTRs."""
    events: EventSettings = Field(default_factory=EventSettings)
    """The shape of events."""
    sources: tuple[SourceSettings, ...] = ()
    """Several topics, each with the shape of its events: one entry a topic. None: broker.topic is
    the only one, and its events are as [events] says."""
    registry: RegistrySettings = Field(default_factory=RegistrySettings)
    """Schemas of records."""
    log: LogSettings = Field(default_factory=LogSettings)
    """Logging."""
    tracing: TracingSettings = Field(default_factory=TracingSettings)
    """Traces."""

    @model_validator(mode="before")
    @classmethod
    def _share(cls, values: Any) -> Any:
        """Give sources what they have of [events]."""
        sources = values.get("sources") if isinstance(values, Mapping) else None
        if not isinstance(sources, list | tuple):
            return values
        events = values.get("events") or {}
        if isinstance(events, EventSettings):
            events = events.model_dump(exclude_unset=True)
        shared = {key: events[key] for key in SHARED if key in events}
        filled = [{**shared, **one} if isinstance(one, Mapping) else one for one in sources]
        return {**values, "sources": filled}

    @field_validator("sources")
    @classmethod
    def _check_sources(
        cls, value: tuple[SourceSettings, ...], info: ValidationInfo
    ) -> tuple[SourceSettings, ...]:
        events: EventSettings | None = info.data.get("events")
        broker: BrokerSettings | None = info.data.get("broker")
        if not value or events is None or broker is None:
            return value
        for what in ("name", "topic"):
            seen = [getattr(one, what) for one in value]
            twice = next((one for one in seen if seen.count(one) > 1), None)
            if twice is not None:
                raise ValueError(f"two have the {what} {twice!r}; give each its own")
        for one in value:
            if one.action_names != events.action_names:
                raise ValueError(
                    f"{one.name} has action_names of its own, but they are the store's: declare"
                    " them in [events], for all sources, and map names in its actions"
                )
        unread = [f"events.{name}" for name in sorted(events.model_fields_set - set(SHARED))]
        if "topic" in broker.model_fields_set:
            unread.insert(0, "broker.topic")
        if unread:
            raise ValueError(
                f"nobody reads {unread[0]} where there are sources: say it in the source's entry"
            )
        return value

    def reading(self, source: str | None = None) -> Settings:
        """The settings of who reads one source: its topics in ``broker``, and the shape of its
        events in ``events``.

        Args:
            source: its name; None: `WorkerSettings.source`, or the only one that there is.

        Raises:
            SettingsError: there is no such source, or several and none is named.
        """
        narrowed = self.narrowed([] if source is None else [source])
        chosen = narrowed.sources
        if not chosen:
            return self
        if len(chosen) > 1:
            raise SettingsError(
                f"there are {len(chosen)} sources: name one of"
                f" {', '.join(one.name for one in chosen)} (--source, worker.source)"
            )
        (found,) = chosen
        topics = {
            "topic": found.topic,
            "dead_letter_topic": found.dead_letter_topic or self.broker.dead_letter_topic,
        }
        broker = self.broker.model_copy(update=topics)
        return narrowed.model_copy(update={"broker": broker, "events": found, "sources": ()})

    def readers(self) -> tuple[Settings, ...]:
        """The settings of who reads each topic, as `reading` gives them."""
        return tuple(self.reading(one.name) for one in self.sources) or (self,)

    def narrowed(self, names: Sequence[str] = ()) -> Settings:
        """The settings of a worker that reads some sources alone.

        Args:
            names: theirs; none: those of `WorkerSettings.source`, or all that there are.

        Raises:
            SettingsError: there is no such source.
        """
        if not names and self.worker.source is not None:
            names = [name.strip() for name in self.worker.source.split(",")]
        there = {one.name: one for one in self.sources}
        for name in names:
            if not there:
                raise SettingsError(
                    f"source {name!r}: there are no [[sources]] in the settings, only"
                    f" {self.broker.topic} (broker.topic), which has no name"
                )
            if name not in there:
                raise SettingsError(
                    f"source {name!r} is not in the settings; {hint(name, list(there))}"
                )
        chosen = tuple(one for one in self.sources if not names or one.name in names)
        worker = self.worker.model_copy(update={"source": None})
        return self.model_copy(update={"sources": chosen, "worker": worker})


def load_settings(
    overrides: Mapping[str, object] | None = None,
    config: Path | None = None,
    *,
    flags: Mapping[str, str] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Read all sources and check them.

    Args:
        overrides: what was given on the command line, by dotted key (``{"store.url": "memory://"}``)
            or nested; a value of None means that the flag was not given.
        config: the file named by ``--config``; it must exist. None: ``LIFELONG_CONFIG``, then
            ``lifelong.toml`` if there is one.
        flags: dotted key to the flag that sets it (``{"store.url": "--store"}``), so that an
            error speaks of the flag that the user typed.
        environ: the environment; None: the process's.

    Raises:
        SettingsError: one line that names the key as the user wrote it, the bad value (masked
            where it is secret) and what is allowed.

    >>> load_settings({"log.level": "debug"}, environ={}).log.level
    'DEBUG'
    """
    environ = os.environ if environ is None else environ
    sources = (
        _flag_source(overrides or {}, flags or {}),
        _environment_source(environ),
        _file_source(config, environ),
    )
    merged: dict[str, Any] = {}
    for source in reversed(sources):
        _merge(merged, source.values)
    try:
        return Settings.model_validate(merged)
    except ValidationError as error:
        raise SettingsError(_explain(error, sources)) from None


def example_toml() -> str:
    """Every setting with its meaning and default, as a file that changes nothing until edited."""
    lines = [
        "# Settings of Lifelong, each commented out at its default. Copy to lifelong.toml, or name",
        "# the file with --config or LIFELONG_CONFIG. The environment goes before the file:",
        "# broker.bootstrap is LIFELONG_BROKER__BOOTSTRAP.",
    ]
    for section, model in SECTIONS.items():
        lines += ["", f"[{section}]  # {Settings.model_fields[section].description}"]
        for name, leaf in model.model_fields.items():
            lines += [f"# {line.strip()}" for line in (leaf.description or "").splitlines()]
            shown = _EXAMPLES.get((section, name))
            if shown is None:
                shown = getattr(model(), name)
            lines.append(f"#{name} = {_toml(shown)}")
    lines += [
        "",
        "# One entry a topic, where there are several; each may say what [events] does.",
        "#[[sources]]",
    ]
    for name in OF_SOURCES:
        about = SourceSettings.model_fields[name].description or ""
        lines += [f"# {line.strip()}" for line in about.splitlines()]
        lines.append(f"#{name} = {_toml(_EXAMPLES['sources', name])}")
    return "\n".join(lines) + "\n"


# What the example file shows where the default (nothing) would teach nothing.
_EXAMPLES: Final[dict[tuple[str, str], object]] = {
    ("broker", "sasl_mechanism"): "SCRAM-SHA-512",
    ("broker", "sasl_username"): "lifelong",
    ("broker", "sasl_password"): "file:/run/secrets/kafka-password",
    ("broker", "ca_file"): "/etc/ssl/kafka.pem",
    ("broker", "cert_file"): "/etc/ssl/lifelong.pem",
    ("broker", "key_file"): "/etc/ssl/lifelong.key",
    ("broker", "key_password"): "file:/run/secrets/kafka-key-password",
    ("broker", "oauth_token_url"): "https://login.example.com/token",
    ("broker", "oauth_client_id"): "lifelong",
    ("broker", "oauth_client_secret"): "file:/run/secrets/kafka-client-secret",
    ("broker", "oauth_scope"): "kafka",
    ("broker", "oauth_ca_file"): "/etc/ssl/login.pem",
    ("broker", "oauth_extensions"): {"logicalCluster": "lkc-1"},
    ("scorer", "tls_cert"): "/etc/ssl/scorer.pem",
    ("scorer", "tls_key"): "/etc/ssl/scorer.key",
    ("scorer", "tls_client_ca"): "/etc/ssl/clients.pem",
    ("scorer", "keys"): "/etc/lifelong/keys.toml",
    ("scorer", "jwt_issuer"): "https://login.example.com/",
    ("scorer", "jwt_audience"): "lifelong",
    ("scorer", "jwt_keys"): "https://login.example.com/.well-known/jwks.json",
    ("store", "id"): "9f0c2ab4de5c43d1b3a8d9e0f1a2b3c4",
    ("bundle", "path"): "/srv/lifelong/bundle",
    ("bundle", "version"): "1f2e3d4c",
    ("bundle", "public_key"): "/etc/lifelong/signing.pub.pem",
    ("tracing", "endpoint"): "http://127.0.0.1:4318",
    ("registry", "url"): "https://registry.example.com",
    ("registry", "username"): "lifelong",
    ("registry", "password"): "...",
    ("registry", "password_file"): "/run/secrets/registry",
    ("registry", "token"): "...",
    ("registry", "token_file"): "/run/secrets/registry-token",
    ("registry", "ca_file"): "/etc/ssl/registry.pem",
    ("registry", "cert_file"): "/etc/ssl/lifelong.pem",
    ("registry", "key_file"): "/etc/ssl/lifelong.key",
    ("worker", "source"): "shop",
    ("events", "split"): "payload.items",
    ("events", "only"): {"type": "track"},
    ("events", "ignore"): {"bot": True},
    ("sources", "name"): "shop",
    ("sources", "topic"): "shop.events",
    ("sources", "dead_letter_topic"): "shop.events.dead",
    ("events", "fields"): {"user_id": ["user.id", "user.anonymous"], "item_id": "items[0].sku"},
    ("events", "constants"): {"action": "click"},
    ("events", "actions"): {"buy": "purchase"},
}


@dataclass(frozen=True, slots=True)
class _Source:
    """One place that settings come from."""

    values: dict[str, Any]
    written: Callable[[tuple[str, ...]], str]
    """The setting's name as the user of this source writes it."""

    def get(self, path: tuple[str, ...]) -> tuple[bool, object]:
        """Whether the source sets the path, and to what."""
        value: object = self.values
        for part in path:
            if not isinstance(value, Mapping) or part not in value:
                return False, None
            value = value[part]
        return True, value


class _Environment(Settings, BaseSettings):
    """The settings as pydantic-settings names and nests variables; never instantiated."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_nested_delimiter="__", env_ignore_empty=True
    )


class _MappingEnvironment(EnvSettingsSource):
    """pydantic-settings' reader over a given mapping instead of the process's environment."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        super().__init__(_Environment)

    def _load_env_vars(self) -> Mapping[str, str | None]:
        return {name.lower(): value for name, value in self._environ.items() if value}


SECTIONS: Final[dict[str, type[Section]]] = {
    name: field.annotation
    for name, field in Settings.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
}
"""The sections, by name; what there may be several of is none (`Settings.sources`)."""

OF_SOURCES: Final = tuple(
    name for name in SourceSettings.model_fields if name not in EventSettings.model_fields
)
"""What a source says beside what [events] does."""


def _keys() -> list[tuple[str, ...]]:
    """Every setting as (section, name)."""
    return [(section, name) for section, model in SECTIONS.items() for name in model.model_fields]


def secret_keys() -> list[tuple[str, ...]]:
    """Settings that are secret, as (section, name)."""
    return [
        (section, name)
        for section, model in SECTIONS.items()
        for name, field in model.model_fields.items()
        if field.annotation == SecretStr | None
    ]


def _is_mapping(path: tuple[str, ...]) -> bool:
    of_events = ("fields", "constants", "actions", "only", "ignore")
    return path[:2] in {("broker", "oauth_extensions"), *(("events", name) for name in of_events)}


def _flag_source(overrides: Mapping[str, object], flags: Mapping[str, str]) -> _Source:
    def written(path: tuple[str, ...]) -> str:
        return flags.get(".".join(path), ".".join(path))

    nested: dict[str, Any] = {}
    for key, value in overrides.items():
        if value is None:
            continue
        branch = nested
        *parents, leaf = key.split(".")
        for parent in parents:
            branch = branch.setdefault(parent, {})
        if isinstance(value, Mapping):
            given = {name: item for name, item in value.items() if item is not None}
            _merge(branch.setdefault(leaf, {}), given)
        else:
            branch[leaf] = value
    source = _Source(nested, written)
    _check_names(source)
    return source


def _environment_source(environ: Mapping[str, str]) -> _Source:
    known = {_env_name(path): path for path in _keys()}
    for name, value in environ.items():
        upper = name.upper()
        if upper == _env_name(("sources",)):
            if not _is_json(value, list):
                raise SettingsError(
                    f'{name} = {value!r}: must be a JSON array like [{{"name": ...}}]'
                )
            continue
        if not upper.startswith(ENV_PREFIX) or upper == ENV_CONFIG or not value:
            continue
        if _SERVICE_LINK.search(upper) or _SERVICE_LINK_VALUE.match(value):
            continue
        path = known.get(upper) or known.get("__".join(upper.split("__")[:2]))
        if path is None or (upper not in known and not _is_mapping(path)):
            raise SettingsError(f"{name} is not a setting{_nearest(upper, known)}")
        if upper in known and _is_mapping(path) and not _is_json(value, dict):
            raise SettingsError(
                f'{name} = {value!r}: must be a JSON object like {{"ours": "theirs"}}'
            )
    return _Source(_MappingEnvironment(environ)(), _env_name)


def _file_source(config: Path | None, environ: Mapping[str, str]) -> _Source:
    named = config or (Path(environ[ENV_CONFIG]) if environ.get(ENV_CONFIG) else None)
    path = named or DEFAULT_FILE
    origin = "--config" if config else ENV_CONFIG
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if named is None:
            return _Source({}, ".".join)
        raise SettingsError(f"{origin}: there is no file {path}") from None
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: is not TOML: {one_line(error)}") from None
    source = _Source(values, lambda key: f"{path}: {'.'.join(key)}")
    _check_names(source)
    return source


def _check_names(source: _Source) -> None:
    """Raise at the first name of the source that is no setting."""
    known = {".".join(path) for path in _keys()}
    for section, values in source.values.items():
        if section == "sources":
            _check_source_names(source, values)
            continue
        if section not in SECTIONS:
            hint = _nearest(section, Settings.model_fields)
            if isinstance(values, Mapping) and not hint:
                hint = f"; sections are {', '.join(SECTIONS)}"
            elif not isinstance(values, Mapping):
                hint = _nearest(section, known)
            raise SettingsError(f"{source.written((section,))} is not a setting{hint}")
        if not isinstance(values, Mapping):
            raise SettingsError(
                f"{source.written((section,))} is a section, not a setting: it holds "
                + ", ".join(SECTIONS[section].model_fields)
            )
        for name in values:
            key = f"{section}.{name}"
            if key not in known:
                raise SettingsError(
                    f"{source.written((section, name))} is not a setting{_nearest(key, known)}"
                )


def _check_source_names(source: _Source, entries: object) -> None:
    """Raise at the first name in the entries of [[sources]] that is no setting of theirs."""
    known = set(SourceSettings.model_fields)
    where = source.written(("sources",))
    if not isinstance(entries, list | tuple) or not all(isinstance(e, Mapping) for e in entries):
        raise SettingsError(f"{where} is not a list of entries: write [[sources]] above each")
    for place, entry in enumerate(entries, 1):
        of = f"{where}.{entry.get('name', place)}"
        for name in ("name", "topic"):
            if name not in entry:
                raise SettingsError(f"{of}: has no {name}; give it one")
        for name in entry:
            if name not in known:
                raise SettingsError(f"{of}.{name} is not a setting{_nearest(name, known)}")


def _nearest(name: str, known: Mapping[str, object] | set[str]) -> str:
    """A hint at what was meant: the closest known name, or one with the same last part."""
    last = _last(name)
    key = next((key for key in sorted(known) if _last(key) == last), nearest(name, known))
    return f"; did you mean {key}?" if key else ""


def _last(name: str) -> str:
    return re.split(r"\.|__", name)[-1]


def _explain(error: ValidationError, sources: tuple[_Source, ...]) -> str:
    """One line about the first thing that is wrong."""
    # A default that is made of other settings is not made where one of them is wrong.
    details = [
        one
        for one in error.errors(include_url=False)
        if one["type"] != "default_factory_not_called"
    ]
    first = details[0]
    path = tuple(str(part) for part in first["loc"])
    if path[0] == "sources":
        return f"{_of_source(path, first, sources)}: {_allowed(first)}"
    key = path[:2]
    written, value = ".".join(key), first["input"]
    for source in sources:
        given, found = source.get(key)
        if given:
            written, value = source.written(key), found
            break
    shown = "" if len(key) < 2 else f" = {_show(key, value)}"
    more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
    return f"{written}{shown}: {_allowed(first)}{more}"


def _of_source(path: tuple[str, ...], detail: ErrorDetails, sources: tuple[_Source, ...]) -> str:
    """What is wrong in an entry of [[sources]], as its user wrote it: sources.shop.format = ..."""
    written = next(s.written for s in sources if s.get(("sources",))[0])
    if len(path) < 3:
        return written(("sources",))
    entries = next(found for given, found in (s.get(("sources",)) for s in sources) if given)
    assert isinstance(entries, list | tuple)
    entry = entries[int(path[1])]
    key = written(("sources", str(entry.get("name", path[1])), path[2]))
    return f"{key} = {_show(path[1:3], entry.get(path[2], detail['input']))}"


def _show(key: tuple[str, ...], value: object) -> str:
    if key == ("store", "url"):
        return repr(mask_url(str(value)))
    if key in secret_keys() and not str(value).startswith(FILE):
        return MASK
    if key in {("scorer", "jwt_keys"), ("tracing", "endpoint"), ("registry", "url")} and "@" in str(
        value
    ):
        return MASK
    shown = repr(value)
    return shown if len(shown) <= SHOWN_CHARS else f"{shown[:SHOWN_CHARS]}..."


def _allowed(detail: ErrorDetails) -> str:
    """What would have been right, in words for whoever set it."""
    kind, context = detail["type"], detail.get("ctx", {})
    match kind:
        case "value_error":
            return str(context["error"])
        case "literal_error":
            return f"must be {context['expected']}"
        case "int_parsing" | "int_type" | "int_from_float":
            return "must be a whole number"
        case "float_parsing" | "float_type":
            return "must be a number"
        case "greater_than_equal":
            return f"must be at least {context['ge']}"
        case "greater_than":
            return f"must be more than {context['gt']}"
        case "less_than_equal":
            return f"must be at most {context['le']}"
        case "string_pattern_mismatch":
            return f"must match {context['pattern']}"
        case _:
            return detail["msg"].replace("Input should be", "must be", 1)


def _env_name(path: tuple[str, ...]) -> str:
    return ENV_PREFIX + "__".join(path).upper()


def _is_json(text: str, kind: type) -> bool:
    try:
        return isinstance(json.loads(text), kind)
    except ValueError:
        return False


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> None:
    """Lay one nested mapping over another, in place."""
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = dict(value) if isinstance(value, Mapping) else value


def _check_event_fields(mapping: Mapping[str, object]) -> None:
    for name in mapping:
        if name not in EVENT_FIELDS:
            raise ValueError(f"{name!r} is not one of our fields: {', '.join(EVENT_FIELDS)}")


def _check_path(shown: str, path: str) -> None:
    if is_stepped(path):
        return
    if not _EXPRESSION.search(path):
        raise ValueError(f"{shown} is not a name or a dotted path")
    import jmespath
    from jmespath.exceptions import JMESPathError

    try:
        jmespath.compile(path)
    except JMESPathError as error:
        raise ValueError(f"{shown} is not JMESPath: {one_line(error)}") from None


def _check_declared(action: str, info: ValidationInfo) -> None:
    names = info.data.get("action_names")  # None: they are wrong themselves, which is told first
    if names is not None and action not in names:
        raise ValueError(f"{action!r} is not declared in action_names; {hint(action, names)}")


def _choice(names: Iterator[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} or {last}"


def _toml(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case list() | tuple():
            return f"[{', '.join(map(_toml, value))}]"
        case dict():
            return "{ " + ", ".join(f"{k} = {_toml(v)}" for k, v in value.items()) + " }"
        case datetime():
            return value.date().isoformat()
        case int() | float():
            return str(value)
        case _:
            return json.dumps(str(value))


if __name__ == "__main__":
    print(example_toml(), end="")  # noqa: T201  # python -m infra.settings > lifelong.example.toml
