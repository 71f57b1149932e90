"""What a format is: it turns a record of a topic into raw events, whatever a producer sent."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Protocol, runtime_checkable

from streaming.events.rejects import Rejected

if TYPE_CHECKING:
    from streaming.events.parsing import How, Rows

Headers = Sequence[tuple[str, bytes | None]]
"""The headers of a record, as they were sent."""

RawEvent = dict[str, object]
"""An event as JSON has it: objects, arrays and values. What the format reads of a typed form may
be a `streaming.events.times.Timestamp`, which carries its unit."""

MOST_EVENTS: Final = 10_000
"""Events of one record. All of a user's are applied at once, since they have one offset."""


class Format(Protocol):
    """How records hold events; one class for each, in `streaming.events.formats`.

    Nothing that a record holds makes it raise anything but `Rejected`, of what it cannot read, and
    `Ignored`, of what is no behavior. It may raise a `LifelongError` for what cannot be answered
    now and will be (a registry that is away): the batch is then tried again, and nothing is lost.
    """

    def read(
        self, key: bytes | None, value: bytes | None, headers: Headers
    ) -> Sequence[RawEvent | Rejected]:
        """The events of a record, in their order; in the place of one that cannot be read, why."""
        ...

    def keep(self, value: bytes, places: Collection[int]) -> bytes | None:
        """The value of a record that holds those of its events alone, by their places in the order
        of `read`, with the elements of ``split`` counted one by one; for dead letters.

        None: it cannot be cut, so such a record is refused as a whole where one of its events is.
        """
        ...


@runtime_checkable
class KernelFormat(Protocol):
    """A `Format` whose records a kernel reads, many at once; `Format.read` has the others."""

    def prepare(self, paths: Mapping[str, Sequence[str]], unit: str) -> bool:
        """Whether a kernel can read events of these.

        Args:
            paths: our fields' names to their paths, by the names of objects within each other; no
                two are the same.
            unit: of times.
        """
        ...

    def parse(
        self,
        values: Sequence[bytes | None],
        keys: Sequence[bytes | None],
        headers: Sequence[Headers] | None,
        how: How,
    ) -> Rows:
        """The events of records, as far as it is sure of them: `streaming.events.parsing.parse`."""
        ...


class Preset(NamedTuple):
    """What is usual in a format, which holds where the settings do not say else."""

    fields: Mapping[str, str | tuple[str, ...]] = {}
    actions: Mapping[str, str] = {}
    """Those whose name is not declared are left out."""
    constants: Mapping[str, str | int] = {}
    only: Mapping[str, tuple[str | int | bool | float, ...]] = {}
    ignore: Mapping[str, tuple[str | int | bool | float, ...]] = {}
    time_unit: Literal["s", "ms", "us", "iso"] = "ms"
    key: Literal["user", "any"] = "user"
    split: str = ""
