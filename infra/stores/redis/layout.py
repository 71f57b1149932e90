"""Where what lies in Redis: names of keys and fields, and the script that changes users.

All of a user is one hash: its head, its segments and its interest states are fields, so that one
command reads any of them as they were at one moment, one expiry ends all, and one deletion leaves
nothing. Users fall into `BUCKETS`; a bucket's users, their listing and who of them is due carry one
hash tag, so in a cluster they lie in one slot, and one script changes them together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import xxhash

from infra.records import DueKey

BUCKETS: Final = 256
"""Fixed, as long as the layout is. Enough to lie evenly over some dozen servers of a cluster, and
few enough that all can be asked in one round trip."""

HEAD: Final = b"h"

Command = tuple[bytes | str | int, ...]
"""A command of Redis, its name first."""


def bucket_of(user: str) -> int:
    """The bucket that a user falls into."""
    return xxhash.xxh3_64_intdigest(user.encode()) % BUCKETS


def segment_field(place: int) -> bytes:
    """The field of a segment, by its place in the ring."""
    return b"s%d" % place


def state_field(bundle: int) -> bytes:
    """The field of a bundle's interest state."""
    return b"i%016x" % bundle


@dataclass(frozen=True, slots=True)
class Keys:
    """Names of a store's keys."""

    prefix: str

    def user(self, user: str) -> bytes:
        """All of a user."""
        return f"{self.prefix}:{{{bucket_of(user):02x}}}:user:{user}".encode()

    def users(self, bucket: int) -> bytes:
        """A bucket's users who have a sequence, in the order of their names."""
        return f"{self.prefix}:{{{bucket:02x}}}:users".encode()

    def due(self, bucket: int, owner: int, bundle: int) -> bytes:
        """A bucket's users who are due under an owner for a bundle, by since when."""
        return f"{self.prefix}:{{{bucket:02x}}}:due:{owner:016x}:{bundle:016x}".encode()

    def source(self, source: int) -> bytes:
        """How far a source was applied."""
        return f"{self.prefix}:source:{source:016x}".encode()

    def bookmark(self, name: str) -> bytes:
        """A bookmark."""
        return f"{self.prefix}:bookmark:{name}".encode()


@dataclass(slots=True)
class Change:
    """What becomes of a user whose head is still as it was read."""

    set: dict[bytes, bytes] = field(default_factory=dict)
    """Fields that are written."""
    remove: Sequence[bytes] = ()
    """Fields that go."""
    clear: bool = False
    """Whether all that was there goes first."""
    listed: bool | None = None
    """Whether the user is listed then; None: as before."""
    ttl_ms: int = 0
    """In so many ms from now it expires; 0: when it did before."""
    due: Iterable[DueKey] = ()
    undue: Iterable[DueKey] = ()


def change_command(keys: Keys, changes: Sequence[tuple[str, bytes | None, Change]]) -> Command:
    """The command that changes users of one bucket, each (user, head as it was read, change); its
    answer has a 1 for each whose head was still that one, and a 0 for each other.
    """
    bucket = bucket_of(changes[0][0])
    named: dict[bytes, int] = {keys.users(bucket): 1}

    def place(key: bytes) -> int:
        return named.setdefault(key, len(named) + 1)

    arguments: list[bytes | str | int] = []
    for user, head, change in changes:
        listed = "" if change.listed is None else int(change.listed)
        told: list[bytes | str | int] = [int(change.clear), listed, change.ttl_ms]
        told.append(2 * len(change.set))
        for name, value in change.set.items():
            told += (name, value)
        told += (len(change.remove), *change.remove)
        undue = [place(keys.due(bucket, key.owner, key.bundle)) for key in change.undue]
        told += (len(undue), *undue)
        due = [(place(keys.due(bucket, key.owner, key.bundle)), key.since) for key in change.due]
        told.append(len(due))
        for where, since in due:
            told += (where, since)
        arguments += (place(keys.user(user)), user, expected(head), len(told), *told)
    return ("EVAL", CHANGE, len(named), *named, *arguments)


def expected(head: bytes | None) -> bytes:
    """What tells the script which head it must find: its checksum, where it has one."""
    if head is None:
        return b"-"
    return b"=" + (head[-8:] if head[:1] not in {b"", b"\1"} else head)


CHANGE: Final = b"""
local at = 1
local function take() at = at + 1; return ARGV[at - 1] end
local function number() return tonumber(take()) end
local function several()
  local found = {}
  for i = 1, number() do found[i] = take() end
  return found
end
local done = {}
while at <= #ARGV do
  local key, user, expected, size = KEYS[number()], take(), take(), number()
  local held = redis.call('HGET', key, 'h')
  local same = not held and expected == '-'
  if held and string.sub(expected, 1, 1) == '=' then
    local tail = string.sub(expected, 2)
    same = tail == '' and held == '' or tail ~= '' and string.sub(held, -#tail) == tail
  end
  if not same then
    at = at + size
    done[#done + 1] = 0
  else
    local clear, listed, ttl = take() == '1', take(), number()
    if clear then redis.call('DEL', key) end
    local set, removed = several(), several()
    if #set > 0 then redis.call('HSET', key, unpack(set)) end
    if #removed > 0 then redis.call('HDEL', key, unpack(removed)) end
    if ttl > 0 then redis.call('PEXPIRE', key, ttl) end
    if listed == '1' then redis.call('ZADD', KEYS[1], 0, user) end
    if listed == '0' then redis.call('ZREM', KEYS[1], user) end
    for i = 1, number() do redis.call('ZREM', KEYS[number()], user) end
    for i = 1, number() do
      local due = KEYS[number()]
      redis.call('ZADD', due, take(), user)
    end
    done[#done + 1] = 1
  end
end
return done
"""
"""Changes users whose heads are as they were read. Who comes second reads again, and decides again.
"""

RAISE: Final = b"""
local held = redis.call('GET', KEYS[1])
if not held or tonumber(held) < tonumber(ARGV[1]) then redis.call('SET', KEYS[1], ARGV[1]) end
return 1
"""
"""Sets a number unless a larger one is there."""
