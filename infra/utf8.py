"""UTF-8 (RFC 3629) for kernels that find it as bytes in a larger text."""

from __future__ import annotations

from infra.arrays import U8
from infra.compiling import kernel


@kernel
def size_of_character(text: U8, at: int, end: int) -> int:
    """Bytes of the character beyond ASCII that begins at ``text[at]``; 0: it is none."""
    first = text[at]
    # The second byte's range keeps out what has a shorter form, surrogates, and what is too large.
    low, high = 0x80, 0xBF
    if 0xC2 <= first <= 0xDF:
        size = 2
    elif 0xE0 <= first <= 0xEF:
        size = 3
        if first == 0xE0:
            low = 0xA0
        elif first == 0xED:
            high = 0x9F
    elif 0xF0 <= first <= 0xF4:
        size = 4
        if first == 0xF0:
            low = 0x90
        elif first == 0xF4:
            high = 0x8F
    else:
        return 0
    if at + size > end or not low <= text[at + 1] <= high:
        return 0
    for place in range(at + 2, at + size):
        if not 0x80 <= text[place] <= 0xBF:
            return 0
    return size
