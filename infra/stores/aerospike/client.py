"""The store's client of Aerospike: timeouts, batches, and the error that a result code becomes."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar

import aerospike
from aerospike import exception
from aerospike_helpers.batch.records import BatchRecord, BatchRecords

from infra.errors import (
    RecordTooLarge,
    SettingsError,
    StoreError,
    StoreFull,
    StoreUnavailable,
)
from infra.store import AS_IT_COMES, StoreOptions
from infra.stores.aerospike.address import AerospikeAddress
from infra.stores.outages import Outages

TIMEOUT_S: Final = 5.0
"""How long one call to the servers may take, retries included."""

CONNECT_S: Final = 1.0
"""Least time for a connection and what is asked at its beginning. It is made beside the calls, and
with TLS, or a node across a network, takes longer than a scorer waits for an answer."""

WALK_TIMEOUT_S: Final = 60.0
"""How long a walk over all users may take; for tools only."""

PARTITIONS: Final = 4096
"""Partitions of every namespace."""

RECORD_LIMIT: Final = 1 << 20
"""Bytes that a server takes in a record unless it is configured otherwise."""

BATCH: Final = 1000
"""Records in one request; more make the server hold a larger answer without being faster."""

IN_FLIGHT: Final = 4
"""Requests of a process that are on their way at once, beside the one of each calling thread. To
write one and to read its answer takes the client longer (some 40 ms) than the way to a server and
back, so that a few hide it; more would only wait for each other in the server, within their time.
"""

# Result codes of the server (its proto.h), as they come back per record of a batch.
OK: Final = 0
_NOT_FOUND: Final = 2
_GENERATION: Final = 3
_EXISTS: Final = 5
_FULL: Final = 8
_TIMEOUT: Final = 9
_NO_NODE: Final = 11  # none of the cluster serves the record's partition
_RECORD_TOO_BIG: Final = 13
_OVERLOADED: Final = 18
_NO_NAMESPACE: Final = 20
_FORBIDDEN: Final = 22
_FILTERED_OUT: Final = 27
_SECURITY: Final = range(50, 100)
_INDEX_NOT_FOUND: Final = 201
_INDEX_NOT_READABLE: Final = 203
_UNREACHED: Final = -10  # the client's: a connection was refused or cut
_BATCH_FAILED: Final = -16  # the client's: some of the records have a code of their own

# Result codes that a kind of writes counts on; all others are failures.
CONFLICT: Final = frozenset((OK, _NOT_FOUND, _GENERATION, _EXISTS))
MONOTONE: Final = frozenset((OK, _FILTERED_OUT))
PRESENT: Final = frozenset((OK, _NOT_FOUND))

_LIMIT: Final = re.compile(r"\b(max-record-size|write-block-size)=(\d+)")

_PAIR: Final = re.compile(r"([^\s;=]+)=([^;\n]*)")

_UPTIME: Final = re.compile(r"\buptime=(\d+)")

Key = tuple[str, str, bytearray]
"""Namespace, set and key of a record."""


Answer = TypeVar("Answer")


class Stored(NamedTuple):
    """A record as it was read."""

    generation: int
    bins: dict[str, Any]


class Reads(NamedTuple):
    """Records to be read."""

    keys: Sequence[Key]
    bins: list[str]


class Writes(NamedTuple):
    """Writes and removals to be made."""

    records: Sequence[BatchRecord]
    answers: frozenset[int]
    """The result codes that are counted on."""
    users: Sequence[str]
    """Whose each is, for errors."""


NO_READS: Final = Reads((), [])
NO_WRITES: Final = Writes((), frozenset(), ())


class IndexMissing(StoreUnavailable):
    """The index of due users is missing or still being built, so that it cannot be asked."""


class AerospikeClient:
    """The official client behind calls that take batches of any size, check each answer, and raise
    errors that say what to do.
    """

    def __init__(
        self,
        client: aerospike.Client,
        address: AerospikeAddress,
        options: StoreOptions = AS_IT_COMES,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        """Wrap a connected client; `connect` makes one."""
        self._client = client
        self.address = address
        self._read_only = options.read_only
        self._timeout_s = timeout_s
        # The client's configuration has none for writes in batches, which end after a second then.
        self._policy = _batches(timeout_s)
        self._pool = ThreadPoolExecutor(IN_FLIGHT, "aerospike")
        self._outages = Outages(options.interrupted, options.clock)

    @classmethod
    def connect(
        cls, address: AerospikeAddress, options: StoreOptions, timeout_s: float
    ) -> AerospikeClient:
        """Connect, with ``timeout_s`` seconds for each call.

        Raises:
            StoreUnavailable, SettingsError: no server answers, or it refuses the credentials.
        """
        # By itself it prints errors to the console. What its calls raise says the same.
        aerospike.set_log_level(aerospike.LOG_LEVEL_OFF)
        client = None
        try:
            client = aerospike.client(_config(address, timeout_s))
            client.connect()
        except exception.AerospikeError as error:
            if client is not None:
                client.close()
            patience_s = max(timeout_s, CONNECT_S)
            raise _failure(address, error.code, error.msg, patience_s) from error
        return cls(client, address, options, timeout_s)

    def close(self) -> None:
        """Disconnect; the client is unusable afterwards."""
        self._pool.shutdown()
        self._client.close()

    def key(self, set_name: str, key: str) -> Key:
        """The key of a record of a set, which the address's prefix tells from another store's."""
        # The client hashes no more than the first byte of bytes, and a str only up to a NUL.
        return self.address.namespace, self._set(set_name), bytearray(key.encode())

    def get(self, keys: Sequence[Key], bins: list[str]) -> list[Stored | None]:
        """Records in the order of the keys; None: there is none."""
        return self.exchange(Reads(keys, bins), NO_WRITES)[0]

    def put(
        self, writes: Sequence[BatchRecord], answers: frozenset[int], users: Sequence[str]
    ) -> list[int]:
        """Make writes and removals, ``users`` naming for errors whose each is.

        Returns:
            The result code of each.

        Raises:
            StoreError, SettingsError: a code is not in ``answers``, though other writes may have
                been made, or a batch did not take place.
        """
        return self.exchange(NO_READS, Writes(writes, answers, users))[1]

    def exchange(self, reads: Reads, writes: Writes) -> tuple[list[Stored | None], list[int]]:
        """`get` and `put` in one round trip, neither before the other, in batches of which many are
        in flight. It returns or raises when none is any more.
        """
        if writes.records:
            self._check_writing()
        read: list[list[Stored | None]] = []
        codes: list[list[int]] = []
        calls: list[Callable[[], None]] = []
        for start in range(0, len(reads.keys), BATCH):
            keys = list(reads.keys[start : start + BATCH])
            read.append([])
            calls.append(partial(self._read, keys, reads.bins, read[-1]))
        for start in range(0, len(writes.records), BATCH):
            some = slice(start, start + BATCH)
            part = Writes(writes.records[some], writes.answers, writes.users[some])
            codes.append([])
            calls.append(partial(self._write, part, codes[-1]))
        self._together(calls)
        return [one for of in read for one in of], [code for of in codes for code in of]

    def _together(self, calls: Sequence[Callable[[], None]]) -> None:
        """Make calls at once, and wait for all of them; raise the first failure, if any."""
        if not calls:
            return
        others = [self._pool.submit(call) for call in calls[1:]]
        try:
            calls[0]()
        finally:
            wait(others)
        for other in others:
            other.result()

    def _read(self, keys: list[Key], bins: list[str], found: list[Stored | None]) -> None:
        try:
            batch = self._client.batch_read(keys, bins)
        except exception.AerospikeError as error:
            raise self._failed(error) from error
        self._check(batch)
        for answer in batch.batch_records:
            if answer.result == OK:
                _, meta, values = answer.record
                found.append(Stored(meta["gen"], values))
            elif answer.result == _NOT_FOUND:
                found.append(None)
            else:
                raise self._failure(answer.result, answer.message)
        self._outages.answered()

    def _write(self, writes: Writes, codes: list[int]) -> None:
        batch = BatchRecords(list(writes.records))
        try:
            self._client.batch_write(batch, self._policy)
        except exception.AerospikeError as error:
            raise self._failed(error) from error
        self._check(batch)
        codes += [answer.result for answer in batch.batch_records]
        for answer, user in zip(batch.batch_records, writes.users, strict=True):
            if answer.result not in writes.answers:
                raise self._failure(answer.result, answer.message, user)
        self._outages.answered()

    def put_one(self, key: Key, bins: dict[str, Any], ttl: int) -> None:
        """Write one record, whatever was there."""
        self._check_writing()
        try:
            self._client.put(key, bins, policy={"ttl": ttl})
        except exception.AerospikeError as error:
            raise self._failed(error) from error
        self._outages.answered()

    def get_one(self, key: Key) -> None:
        """Prove that a record is there and can be read."""
        try:
            self._client.get(key)
        except exception.AerospikeError as error:
            raise self._failed(error) from error
        self._outages.answered()

    def remove(self, key: Key) -> None:
        """Remove one record, if it is there."""
        self._check_writing()
        try:
            self._client.remove(key)
        except exception.RecordNotFound:
            pass
        except exception.AerospikeError as error:
            raise self._failed(error) from error
        self._outages.answered()

    def query(
        self,
        set_name: str,
        bins: list[str],
        *,
        span: tuple[Any, ...] | None = None,
        partitions: tuple[int, int] | None = None,
        page: int = 0,
    ) -> tuple[list[dict[str, Any]], bool]:
        """Records of a set, those that ``span`` (a predicate on an index) finds or all of them, of
        all partitions of the namespace or of so many from one on.

        With a ``page`` it returns about so many, in the time of one call; without, all, in the
        longer time of a walk over all users.

        Returns:
            The records' bins, and whether those are all.

        Raises:
            IndexMissing: the index that ``span`` needs cannot be asked.
        """
        query = self._client.query(self.address.namespace, self._set(set_name))
        query.select(*bins)
        if span is not None:
            query.where(span)
        policy: dict[str, Any] = {} if page else {"total_timeout": int(WALK_TIMEOUT_S * 1000)}
        if partitions is not None:
            policy["partition_filter"] = {"begin": partitions[0], "count": partitions[1]}
        if page:
            query.max_records = page
            query.paginate()
        try:
            rows = query.results(policy)
        except exception.AerospikeError as error:
            if error.code in (_INDEX_NOT_FOUND, _INDEX_NOT_READABLE):
                self._outages.answered()
                raise IndexMissing(
                    f"an index of due users at the Aerospike server at {self.address} is missing"
                    " or being built: due users are not known until it is there"
                ) from error
            raise self._failed(error) from error
        self._outages.answered()
        return [row[2] for row in rows], not page or query.is_done()

    def make_index(self, set_name: str, name: str) -> None:
        """Have the numbers in a bin indexed; an index that is there stays. It is readable only some
        time later, as much as its records take.
        """
        self._check_writing()
        namespace, where = self.address.namespace, self._set(set_name)
        index = f"{where}-{name}"
        # Not by the client's own call, which waits, for half a minute, until it is built.
        now = f"namespace={namespace};set={where};indexname={index};bin={name};type=numeric"
        before_8_1 = f"ns={namespace};set={where};indexname={index};indexdata={name},numeric"
        try:
            try:
                self._client.info_random_node(f"sindex-create:{now}")
            except exception.InvalidRequest:
                self._client.info_random_node(f"sindex-create:{before_8_1}")
        except exception.IndexFoundError:
            pass  # another process was faster
        except exception.AerospikeError as error:
            raise self._failed(error) from error

    def look_for_restarts(self) -> None:
        """Find servers that were started anew since the last look, though no call has failed."""
        try:
            answers = self._client.info_all("statistics")
        except exception.AerospikeError as error:
            if _is_unanswered(error.code):
                raise self._failed(error) from error
            return  # it does not tell this user
        found = {name: _UPTIME.search(answer or "") for name, (_, answer) in answers.items()}
        self._outages.looked({name: int(uptime[1]) for name, uptime in found.items() if uptime})

    def namespace(self) -> dict[str, dict[str, str]]:
        """What each server says of the namespace, its figures and its configuration; of those that
        do not tell it to this user nothing.
        """
        try:
            answers = self._client.info_all(f"namespace/{self.address.namespace}")
        except exception.AerospikeError as error:
            if _is_unanswered(error.code):
                raise self._failed(error) from error
            return {}
        return {
            server: dict(_PAIR.findall(answer or "")) for server, (_, answer) in answers.items()
        }

    def record_limit(self) -> int:
        """How many bytes a server takes in a record of the namespace."""
        try:
            answer = self._client.info_random_node(
                f"get-config:context=namespace;id={self.address.namespace}"
            )
        except exception.AerospikeError as error:
            if _is_unanswered(error.code):
                raise self._failed(error) from error
            return RECORD_LIMIT  # it does not tell this user
        found = dict(_LIMIT.findall(answer))
        # Where the first is not known, or 0, as servers before 7.1 have it, the second counts.
        return (
            int(found.get("max-record-size", 0))
            or int(found.get("write-block-size", 0))
            or RECORD_LIMIT
        )

    def _set(self, name: str) -> str:
        return self.address.prefix + name

    def _check(self, batch: BatchRecords) -> None:
        """Raise where a batch did not take place.

        The client does not when the server is away, and then its records cannot be believed: once
        it has given a node up, reads come back without any, and writes with the code of success.
        """
        if batch.result not in (OK, _BATCH_FAILED):
            detail = next((r.message for r in batch.batch_records if r.message), None)
            raise self._failure(batch.result, detail)

    def _check_writing(self) -> None:
        if self._read_only:
            raise StoreUnavailable(
                f"the store at the Aerospike server at {self.address} was opened for reading alone"
            )

    def _failed(self, error: exception.AerospikeError) -> StoreError | SettingsError:
        return self._failure(error.code, error.msg)

    def _failure(
        self, code: int | None, detail: str | None, user: str | None = None
    ) -> StoreError | SettingsError:
        failure = _failure(self.address, code, detail, self._timeout_s, user)
        if isinstance(failure, StoreError):
            failure.code = code
        if _is_unanswered(code):
            self._outages.failed(failure)
        return failure


def _timeouts(timeout_s: float) -> dict[str, int]:
    total = int(timeout_s * 1000)
    # Every write is conditional or idempotent, so that repeating one in doubt does no harm.
    return {"total_timeout": total, "socket_timeout": total, "max_retries": 2}


def _batches(timeout_s: float) -> dict[str, Any]:
    # By itself the client asks the servers of a cluster one after the other.
    return {**_timeouts(timeout_s), "concurrent": True}


def _config(address: AerospikeAddress, timeout_s: float) -> dict[str, Any]:
    timeouts = _timeouts(timeout_s)
    connect = _timeouts(max(timeout_s, CONNECT_S))["total_timeout"]
    config: dict[str, Any] = {
        "hosts": list(address.hosts),
        "policies": {
            "read": timeouts,
            "write": timeouts,
            "remove": timeouts,
            "batch": _batches(timeout_s),
            "query": timeouts,
            "info": {"timeout": connect},
        },
        "connect_timeout": connect,
    }
    if address.user is not None:
        config["user"] = address.user
        config["password"] = address.password or ""
    return config


def _is_unanswered(code: int | None) -> bool:
    """Whether a result code says that no server answered. Codes below 0 are the client's."""
    return code is None or code < 0 or code in (_TIMEOUT, _NO_NODE)


def _failure(
    address: AerospikeAddress,
    code: int | None,
    detail: str | None,
    timeout_s: float,
    user: str | None = None,
) -> StoreError | SettingsError:
    """The error that a result code becomes, in one line; ``user`` is whose record it was."""
    server = f"the Aerospike server at {address}"
    if code == _TIMEOUT:
        return StoreUnavailable(
            f"{server} did not answer within {timeout_s:g} s: it hangs, is overloaded, or the"
            " network drops what is sent; retry"
        )
    if code == _UNREACHED:
        return StoreUnavailable(
            f"{server} cannot be reached ({_line(detail)}): check that it runs and that store.url"
            " is right"
        )
    if code == _FULL:
        return StoreFull(
            f"{server} has no room left: add memory or disk to the namespace, or set store.ttl_s"
        )
    if code == _RECORD_TOO_BIG:
        whose = f"the record of user {user!r}" if user is not None else "a record"
        return RecordTooLarge(f"{whose} is larger than {server} takes: raise its max-record-size")
    if code == _OVERLOADED:
        return StoreUnavailable(f"{server} is overloaded, its disks lag behind the writes; retry")
    if code == _FORBIDDEN:
        return StoreUnavailable(
            f"{server} forbids the write: with store.ttl_s set the namespace needs nsup-period"
            " above 0, and a set may have reached its stop-writes-count"
        )
    if code == _NO_NAMESPACE:
        return SettingsError(
            f"store.url names namespace {address.namespace!r}, which {server} does not have:"
            " configure it there or name another"
        )
    if code in _SECURITY:
        return SettingsError(
            f"{server} refuses the user or password in store.url (code {code}): {_line(detail)}"
        )
    return StoreUnavailable(
        f"{server} did not carry out the request (code {code}): {_line(detail)};"
        " check that it runs and can be reached"
    )


def _line(detail: str | None) -> str:
    """The first line of what the client says, which lists the same error per try after it."""
    lines = (detail or "").strip().splitlines()
    return lines[0] if lines else "no node of the cluster answers"
