"""What users did, as numbers: the one form that every data set is brought into.

A reader (`models.readers`) turns the columns of a file into `Columns` and, where there are tables
of items or users, `Entities`; `Columns.interactions` does the rest, alike for all of them:
behaviors are sorted by time (stable: the file's order decides between equal times), users and
items are numbered by their first behavior. So what comes later never changes a number that came
before, and `Interactions.head` is what a reader would have made of the first part alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute

from infra.arrays import F32, I32, I64, U8, Bools
from infra.behaviors import MAX_ACTIONS
from infra.errors import DataError
from models.features import PER_MILLION

Column = Any
"""An arrow column, in one piece or in chunks; pyarrow's stubs make a type of every value type."""

pc: Final[Any] = pyarrow.compute  # its stubs refuse half of what it accepts

_BLOCK: Final = 1 << 20
_MOST_TEXT: Final = 2**31  # bytes that one array of texts with 32-bit offsets can hold


@dataclass(frozen=True)
class Attribute:
    """One attribute of all items or all users, with up to w values each.

    Values are numbered by their first occurrence among the entities, so entities that come later
    only add to the end.
    """

    values: list[str]
    """Distinct values; row 0 ("") stands for none or unknown."""
    rows: I32
    """i32[n + 1, w] for items (row 0 all zeros), i32[U, w] for users; padded with 0 behind."""

    @classmethod
    def of(cls, column: Column) -> Self:
        """The attribute whose values an arrow column holds, one row an entity.

        Texts, numbers, or lists of texts; nulls and "" are no value.

        >>> colors = Attribute.of(pa.array([[], ["red", "blue"], ["blue"]]))
        >>> colors.values, colors.rows.tolist()
        (['', 'red', 'blue'], [[0, 0], [1, 2], [2, 0]])
        """
        column = _whole(column)
        size = len(column)
        if _is_list(column.type):
            entity = pc.list_parent_indices(column).to_numpy().astype(np.int64)
            flat = pc.list_flatten(column)
        else:
            entity, flat = np.arange(size), column
        text = flat.cast(pa.string())
        real = pc.fill_null(pc.not_equal(text, ""), fill_value=False)
        entity = entity[real.to_numpy(zero_copy_only=False)]
        coded = text.filter(real).dictionary_encode()  # numbers by first occurrence
        counts = np.bincount(entity, minlength=size)
        starts = np.cumsum(counts) - counts
        rows = np.zeros((size, int(counts.max(initial=1))), np.int32)
        rows[entity, np.arange(len(entity)) - starts[entity]] = coded.indices.to_numpy() + 1
        return cls(["", *map(str, coded.dictionary.to_pylist())], rows)

    def head(self, size: int) -> Attribute:
        """The first ``size`` entities, and the values that occur among them."""
        rows = self.rows[:size]
        return Attribute(self.values[: int(rows.max(initial=0)) + 1], rows)


@dataclass(frozen=True)
class Interactions:
    """Behaviors of many users, oldest first, as numbers (N behaviors, U users, n items)."""

    user_ids: list[str]
    """Ids of the U users."""
    item_ids: list[str]
    """n + 1 ids; row 0 ("") stands for unknown items."""
    titles: list[str]
    """n + 1 titles, "" where there is none."""
    users: I32
    """i32[N]: rows of ``user_ids``."""
    items: I32
    """i32[N]: rows of ``item_ids``, in [1, n]."""
    times: I64
    """i64[N], seconds since epoch, ascending."""
    actions: U8 | None = None
    """u8[N]: rows of ``action_names``, 0 for an unknown action; None: all behaviors are alike."""
    action_names: list[str] = field(default_factory=lambda: [""])
    """Names of the actions; row 0 ("") stands for unknown ones."""
    dwell_s: F32 | None = None
    """f32[N]: how long the user stayed, seconds; 0 where nobody measured it."""
    values: F32 | None = None
    """f32[N]: what the user thought of the item (a rating); NaN where they did not say."""
    item_attributes: dict[str, Attribute] = field(default_factory=dict)
    """Attributes of the items, by name; rows i32[n + 1, w]."""
    user_attributes: dict[str, Attribute] = field(default_factory=dict)
    """Attributes of the users, by name; rows i32[U, w]."""

    def head(self, size: int) -> Interactions:
        """The first ``size`` behaviors, as if nothing had been recorded after them.

        Items and users are numbered in the order of their first behavior, so those that come
        later fall off the end of the tables, and with them the values of their attributes.
        """
        users, items = self.users[:size], self.items[:size]
        n_users = int(users.max(initial=-1)) + 1
        n_items = int(items.max(initial=0))
        return replace(
            self,
            user_ids=self.user_ids[:n_users],
            item_ids=self.item_ids[: n_items + 1],
            titles=self.titles[: n_items + 1],
            users=users,
            items=items,
            times=self.times[:size],
            actions=None if self.actions is None else self.actions[:size],
            dwell_s=None if self.dwell_s is None else self.dwell_s[:size],
            values=None if self.values is None else self.values[:size],
            item_attributes={k: a.head(n_items + 1) for k, a in self.item_attributes.items()},
            user_attributes={k: a.head(n_users) for k, a in self.user_attributes.items()},
        )

    def __len__(self) -> int:
        return len(self.items)

    @cached_property
    def first_seen(self) -> I64:
        """i64[n + 1]: position of each item's first behavior; row 0: 0."""
        first = np.zeros(len(self.item_ids), np.int64)
        rows, positions = np.unique(self.items, return_index=True)
        first[rows] = positions
        return first

    @cached_property
    def _by_item(self) -> I64:
        """item * (N + 1) + position of every behavior, ascending."""
        keys = self.items.astype(np.int64) * (len(self) + 1) + np.arange(len(self))
        keys.sort()
        return keys

    def popularity(self, items: I32, position: I64 | int) -> F32:
        """Behaviors per million on items among the first ``position`` behaviors.

        Any shapes that broadcast.
        """
        count = count_before(self._by_item, len(self), items, position)
        share: F32 = (count * (PER_MILLION / np.maximum(position, 1))).astype(np.float32)
        return share

    def by_item(self, chosen: Bools) -> I64:
        """`count_before`'s index of the behaviors chosen, bool[N]."""
        return self._by_item[chosen[self._by_item % (len(self) + 1)]]


def count_before(by_item: I64, size: int, items: I32, position: I64 | int) -> I64:
    """How many behaviors of an index are of each item, and before a position.

    Args:
        by_item: i64, item * (N + 1) + position of behaviors, ascending.
        size: N.
        items: rows; any shapes that broadcast with ``position``.
    """
    key = items.astype(np.int64) * (size + 1)
    count: I64 = np.searchsorted(by_item, key + position) - np.searchsorted(by_item, key)
    return count


@dataclass(frozen=True)
class Entities:
    """A table of items or of users, as arrow columns: what a data set tells besides behaviors.

    Where an id stands twice its first row counts; ids without a behavior are left out.
    """

    ids: Column
    titles: Column | None = None
    attributes: Mapping[str, Column] = field(default_factory=dict)
    """A text, a number or a list of texts an entity, by the attribute's name."""


@dataclass(frozen=True)
class Columns:
    """Behaviors as columns of N rows, in the file's order."""

    users: Column
    """User ids: texts or integers."""
    items: Column
    """Item ids: texts or integers."""
    times: I64
    """i64[N]: seconds since epoch."""
    actions: Column | None = None
    """Names of actions."""
    action_names: Sequence[str] = ()
    """Order of the actions where the format knows them all; else they are numbered as they come."""
    dwell_s: Column | None = None
    values: Column | None = None
    item_attributes: Mapping[str, Column] = field(default_factory=dict)
    """Attributes of the row's item; an item has what stands in its first row by time."""
    user_attributes: Mapping[str, Column] = field(default_factory=dict)
    """Attributes of the row's user; a user has what stands in their first row by time."""

    def interactions(
        self,
        source: str,
        *,
        items: Entities | None = None,
        users: Entities | None = None,
        share: float = 1.0,
    ) -> Interactions:
        """Sort by time (stable), number by first occurrence, and join the entities' attributes.

        Args:
            source: what errors name: a file, or a topic.
            items: titles and attributes of items.
            users: attributes of users.
            share: the first part of the behaviors to keep, by time; the rest is not looked at.

        Raises:
            DataError: there is no behavior, an id is null, or there are too many actions.
        """
        order = _by_time(self.times)[: int(len(self.times) * share)]
        if not len(order):
            raise DataError(f"{source} holds no behavior to train on")
        user = _numbered(self.users, order, f"{source}: user_id")
        item = _numbered(self.items, order, f"{source}: item_id")
        titles, item_columns = _described(items, item.ids)
        _, user_columns = _described(users, user.ids)
        for name, column in self.item_attributes.items():
            item_columns[name] = _take(column, item.first)
        for name, column in self.user_attributes.items():
            user_columns[name] = _take(column, user.first)
        actions, action_names = self._actions(source, order)
        return Interactions(
            user_ids=user.ids.to_pylist(),
            item_ids=["", *item.ids.to_pylist()],
            titles=["", *titles],
            users=user.rows,
            items=item.rows + np.int32(1),
            times=self.times[order],
            actions=actions,
            action_names=action_names,
            dwell_s=_floats(self.dwell_s, order, 0.0),
            values=_floats(self.values, order, np.nan),
            item_attributes={
                name: Attribute.of(_behind_nothing(column)) for name, column in item_columns.items()
            },
            user_attributes={name: Attribute.of(column) for name, column in user_columns.items()},
        )

    def _actions(self, source: str, order: I64) -> tuple[U8 | None, list[str]]:
        if self.actions is None:
            return None, [""]
        values, codes = _codes(self.actions)
        names = values.cast(pa.string())
        if self.action_names:
            known = pa.array(self.action_names, pa.string())
        else:
            kept, first = _first_occurrences(codes[order], len(names))
            known = names.take(pa.array(kept[np.argsort(first, kind="stable")]))
            known = known.filter(pc.not_equal(known, ""))
        if len(known) > MAX_ACTIONS:
            raise DataError(
                f"{source} has {len(known)} different actions, at most {MAX_ACTIONS} can be told"
                " apart; map them to fewer"
            )
        row = pc.fill_null(pc.index_in(names, value_set=known), -1).to_numpy() + 1
        row = np.append(row, 0)  # null has code -1
        return row[codes[order]].astype(np.uint8), ["", *known.to_pylist()]


class _Numbered(NamedTuple):
    ids: Column
    """Distinct ids as text, by first occurrence."""
    rows: I32
    """i32[N]: the number of each ordered row's id."""
    first: I64
    """i64: row of the file in which each id occurs first by time."""


def _numbered(column: Column, order: I64, what: str) -> _Numbered:
    if column.null_count:
        row = int(np.argmax(_whole(column.is_null()).to_numpy(zero_copy_only=False)))
        raise DataError(f"{what} is null in row {row + 1}; drop such rows, or give them an id")
    values, codes = _codes(column)
    codes = codes[order]
    kept, first = _first_occurrences(codes, len(values))
    by_time = np.argsort(first, kind="stable")
    number = np.empty(len(values), np.int32)
    number[kept[by_time]] = np.arange(len(kept), dtype=np.int32)
    ids = values.take(pa.array(kept[by_time])).cast(pa.string())
    return _Numbered(ids, number[codes], order[first[by_time]])


def _codes(column: Column) -> tuple[Column, I32]:
    """Distinct values, and each row's index among them (-1 for null).

    Ids are hashed as they are and only the distinct ones become text: a hundred million rows of
    integers stay integers.
    """
    if pa.types.is_dictionary(column.type):
        coded = _whole(column)
        if coded.dictionary.null_count or len(coded.dictionary.unique()) < len(coded.dictionary):
            coded = coded.cast(coded.type.value_type).dictionary_encode()
    else:
        if pa.types.is_string(column.type) and column.nbytes >= _MOST_TEXT:
            column = column.cast(pa.large_string())
        # Made whole first: a dictionary for each chunk, made one afterwards, costs ten times more.
        coded = _whole(column).dictionary_encode()
    indices = coded.indices
    if indices.null_count:
        indices = pc.fill_null(indices.cast(pa.int32()), -1)
    codes: I32 = indices.to_numpy().astype(np.int32, copy=False)
    return coded.dictionary, codes


def _first_occurrences(codes: I32, size: int) -> tuple[I64, I64]:
    """The codes that occur, ascending, and where each occurs first."""
    first = np.full(size, len(codes), np.int64)
    # Written from the end, so that the first occurrence stays; in blocks, so that it costs no room.
    for end in range(len(codes), 0, -_BLOCK):
        begin = max(0, end - _BLOCK)
        block = codes[begin:end][::-1]
        at = np.arange(end - 1, begin - 1, -1)
        first[block[block >= 0]] = at[block >= 0]
    kept = np.flatnonzero(first < len(codes))
    return kept, first[kept]


def _by_time(times: I64) -> I64:
    if len(times) and (np.diff(times) < 0).any():
        return np.argsort(times, kind="stable")
    return np.arange(len(times))


def _described(table: Entities | None, ids: Column) -> tuple[list[str], dict[str, Column]]:
    """Title and attributes of each id."""
    if table is None:
        return [""] * len(ids), {}
    at = pc.index_in(ids, value_set=_whole(table.ids.cast(pa.string())))
    titles = [""] * len(ids)
    if table.titles is not None:
        titles = pc.fill_null(_take(table.titles.cast(pa.string()), at), "").to_pylist()
    return titles, {name: _take(column, at) for name, column in table.attributes.items()}


def _behind_nothing(column: Column) -> Column:
    """The column with an entity before it that has no value: row 0, the unknown one."""
    return pa.concat_arrays([pa.nulls(1, column.type), column])


def _take(column: Column, rows: Column | I64) -> Column:
    if isinstance(rows, np.ndarray):
        rows = pa.array(rows)
    return _whole(column.take(rows))


def _floats(column: Column | None, order: I64, missing: float) -> F32 | None:
    if column is None:
        return None
    numbers = pc.fill_null(column.cast(pa.float32(), safe=False), missing)
    floats: F32 = numbers.to_numpy()[order]
    return floats


def _whole(column: Column) -> Column:
    """A column in one piece."""
    if not isinstance(column, pa.ChunkedArray):
        return column
    return column.unify_dictionaries().combine_chunks()


def _is_list(kind: Any) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))
