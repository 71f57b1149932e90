"""Filter expressions: the comparisons and the logic over integer bins, in three truth values.

An expression is msgpack, ``[operator, argument, ...]``. A bin that is absent makes a comparison
unknown, and an unknown filter does not let its record pass, as on the server.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from .wire import PARTICLE_INTEGER, Particle

_AND: Final = 16
_OR: Final = 17
_NOT: Final = 18
_BIN: Final = 81
_BIN_TYPE_INTEGER: Final = 2

_COMPARISONS: Final[dict[int, Callable[[int, int], bool]]] = {
    1: operator.eq,
    2: operator.ne,
    3: operator.gt,
    4: operator.ge,
    5: operator.lt,
    6: operator.le,
}


def matches(packed: bytes, bins: Mapping[str, Particle]) -> bool:
    """Whether a record with these bins passes."""
    return _evaluate(msgspec.msgpack.decode(packed), bins) is True


def _evaluate(expression: Any, bins: Mapping[str, Particle]) -> bool | int | None:
    if isinstance(expression, int):
        return expression
    code, *arguments = expression
    if code == _BIN:
        kind, name = arguments
        assert kind == _BIN_TYPE_INTEGER, f"a filter over bins of type {kind} is not simulated"
        value = bins.get(name)
        return None if value is None or value.kind != PARTICLE_INTEGER else value.integer
    values = [_evaluate(argument, bins) for argument in arguments]
    if code == _AND:
        return False if False in values else None if None in values else True
    if code == _OR:
        return True if True in values else None if None in values else False
    if code == _NOT:
        return None if values[0] is None else not values[0]
    compare = _COMPARISONS[code]
    left, right = values
    return None if left is None or right is None else compare(left, right)
