"""The hashes under which ids are stored, for kernels that have them as bytes in a larger text.

They give what the xxhash library gives, by which `infra.behaviors` makes keys and `infra.records`
makes checksums: XXH3 with 64 bits and XXH32, both with seed 0 (specification: xxHash,
doc/xxhash_spec.md). A call of the library for each id, with the object that it wants, costs more
than all else that is done to an event.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from infra.arrays import U8, U64
from infra.compiling import kernel

_MASK_HEX: Final = (
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671f"
    "cb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6813a264c"
    "3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
    "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364"
    "eac5ac8334d3ebc3c581a0fffa1363eb170ddd51b7f0da49d316552629d4689e"
    "2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
)
"""The 192 bytes of the specification's "secret"."""

_MASK: Final = np.frombuffer(bytes.fromhex(_MASK_HEX), np.uint8).copy()

_P32_1: Final = np.uint64(0x9E3779B1)
_P32_2: Final = np.uint64(0x85EBCA77)
_P32_3: Final = np.uint64(0xC2B2AE3D)
_P32_4: Final = np.uint64(0x27D4EB2F)
_P32_5: Final = np.uint64(0x165667B1)
_P64_1: Final = np.uint64(0x9E3779B185EBCA87)
_P64_2: Final = np.uint64(0xC2B2AE3D27D4EB4F)
_P64_3: Final = np.uint64(0x165667B19E3779F9)
_P64_4: Final = np.uint64(0x85EBCA77C2B2AE63)
_P64_5: Final = np.uint64(0x27D4EB2F165667C5)
_MIX_1: Final = np.uint64(0x165667919E3779F9)
_MIX_2: Final = np.uint64(0x9FB21C651E98DF25)
_LOW: Final = np.uint64(0xFFFFFFFF)


@kernel
def xxh3_64(text: U8, start: int, size: int) -> np.uint64:
    """XXH3 with 64 bits of ``text[start : start + size]``, u8.

    >>> import xxhash
    >>> text = np.frombuffer(b"item 85123A", np.uint8).copy()
    >>> int(xxh3_64(text, 5, 6)) == xxhash.xxh3_64_intdigest(b"85123A")
    True
    """
    length = np.uint64(size)
    if size > 240:
        return _of_more(text, start, size)
    if size > 128:
        return _of_129_to_240(text, start, size)
    if size > 16:
        hashed = length * _P64_1
        for edge in range((size - 1) // 32, -1, -1):
            hashed += _mixed(text, start + 16 * edge, 32 * edge)
            hashed += _mixed(text, start + size - 16 * (edge + 1), 32 * edge + 16)
        return _avalanche(hashed)
    if size > 8:
        low = read_64(text, start) ^ read_64(_MASK, 24) ^ read_64(_MASK, 32)
        high = read_64(text, start + size - 8) ^ read_64(_MASK, 40) ^ read_64(_MASK, 48)
        return _avalanche(length + _swapped(low) + high + _folded(low, high))
    if size > 3:
        ends = _read_32(text, start + size - 4) + (_read_32(text, start) << np.uint64(32))
        hashed = ends ^ read_64(_MASK, 8) ^ read_64(_MASK, 16)
        hashed ^= _rotated(hashed, 49) ^ _rotated(hashed, 24)
        hashed *= _MIX_2
        hashed ^= (hashed >> np.uint64(35)) + length
        hashed *= _MIX_2
        return hashed ^ (hashed >> np.uint64(28))
    if size > 0:
        hashed = (
            np.uint64(text[start]) << np.uint64(16)
            | np.uint64(text[start + size // 2]) << np.uint64(24)
            | np.uint64(text[start + size - 1])
            | length << np.uint64(8)
        )
        return _avalanche_64(hashed ^ _read_32(_MASK, 0) ^ _read_32(_MASK, 4))
    return _avalanche_64(read_64(_MASK, 56) ^ read_64(_MASK, 64))


@kernel
def xxh32(text: U8, start: int, size: int) -> np.uint64:
    """XXH32 of ``text[start : start + size]``, u8, in the low half of a u64.

    >>> import xxhash
    >>> text = np.frombuffer(b"a category's name", np.uint8).copy()
    >>> int(xxh32(text, 0, len(text))) == xxhash.xxh32_intdigest(text.tobytes())
    True
    """
    at, end = start, start + size
    if size >= 16:
        a, b = (_P32_1 + _P32_2) & _LOW, _P32_2
        c, d = np.uint64(0), (np.uint64(0) - _P32_1) & _LOW
        while at + 16 <= end:
            a = _round_32(a, _read_32(text, at))
            b = _round_32(b, _read_32(text, at + 4))
            c = _round_32(c, _read_32(text, at + 8))
            d = _round_32(d, _read_32(text, at + 12))
            at += 16
        hashed = _rotated_32(a, 1) + _rotated_32(b, 7) + _rotated_32(c, 12) + _rotated_32(d, 18)
    else:
        hashed = _P32_5
    hashed = (hashed + np.uint64(size)) & _LOW
    while at + 4 <= end:
        hashed = (hashed + _read_32(text, at) * _P32_3) & _LOW
        hashed = _rotated_32(hashed, 17) * _P32_4 & _LOW
        at += 4
    while at < end:
        hashed = (hashed + np.uint64(text[at]) * _P32_5) & _LOW
        hashed = _rotated_32(hashed, 11) * _P32_1 & _LOW
        at += 1
    hashed = (hashed ^ (hashed >> np.uint64(15))) * _P32_2 & _LOW
    hashed = (hashed ^ (hashed >> np.uint64(13))) * _P32_3 & _LOW
    return hashed ^ (hashed >> np.uint64(16))


@kernel
def _of_129_to_240(text: U8, start: int, size: int) -> np.uint64:
    hashed = np.uint64(size) * _P64_1
    for part in range(8):
        hashed += _mixed(text, start + 16 * part, 16 * part)
    hashed = _avalanche(hashed)
    for part in range(8, size // 16):
        hashed += _mixed(text, start + 16 * part, 16 * (part - 8) + 3)
    return _avalanche(hashed + _mixed(text, start + size - 16, 136 - 17))


@kernel
def _of_more(text: U8, start: int, size: int) -> np.uint64:
    """Of more than 240 bytes: stripes of 64, sixteen to a block, into eight sums."""
    sums = np.array([_P32_3, _P64_1, _P64_2, _P64_3, _P64_4, _P32_2, _P64_5, _P32_1])
    for stripe in range((size - 1) // 64):
        _add_stripe(sums, text, start + 64 * stripe, 8 * (stripe % 16))
        if stripe % 16 == 15:
            for lane in range(8):
                mixed = sums[lane] ^ (sums[lane] >> np.uint64(47))
                sums[lane] = (mixed ^ read_64(_MASK, 128 + 8 * lane)) * _P32_1
    _add_stripe(sums, text, start + size - 64, 121)
    hashed = np.uint64(size) * _P64_1
    for lane in range(0, 8, 2):
        secret = 11 + 8 * lane
        low, high = read_64(_MASK, secret), read_64(_MASK, secret + 8)
        hashed += _folded(sums[lane] ^ low, sums[lane + 1] ^ high)
    return _avalanche(hashed)


@kernel
def _add_stripe(sums: U64, text: U8, at: int, secret: int) -> None:
    for lane in range(8):
        read = read_64(text, at + 8 * lane)
        mixed = read ^ read_64(_MASK, secret + 8 * lane)
        sums[lane ^ 1] += read
        sums[lane] += (mixed & _LOW) * (mixed >> np.uint64(32))


@kernel
def _mixed(text: U8, at: int, secret: int) -> np.uint64:
    return _folded(
        read_64(text, at) ^ read_64(_MASK, secret),
        read_64(text, at + 8) ^ read_64(_MASK, secret + 8),
    )


@kernel
def _folded(a: np.uint64, b: np.uint64) -> np.uint64:
    """Both halves of the product of 128 bits, one upon the other."""
    half = np.uint64(32)
    a_low, a_high, b_low, b_high = a & _LOW, a >> half, b & _LOW, b >> half
    low, middle = a_low * b_low, a_high * b_low
    crossed = (low >> half) + (middle & _LOW) + a_low * b_high
    high = a_high * b_high + (middle >> half) + (crossed >> half)
    return high ^ ((crossed << half) | (low & _LOW))


@kernel
def _avalanche(hashed: np.uint64) -> np.uint64:
    hashed = (hashed ^ (hashed >> np.uint64(37))) * _MIX_1
    return hashed ^ (hashed >> np.uint64(32))


@kernel
def _avalanche_64(hashed: np.uint64) -> np.uint64:
    hashed = (hashed ^ (hashed >> np.uint64(33))) * _P64_2
    hashed = (hashed ^ (hashed >> np.uint64(29))) * _P64_3
    return hashed ^ (hashed >> np.uint64(32))


@kernel
def _rotated(value: np.uint64, bits: int) -> np.uint64:
    return (value << np.uint64(bits)) | (value >> np.uint64(64 - bits))


@kernel
def _swapped(value: np.uint64) -> np.uint64:
    """Its bytes in the other order."""
    swapped = np.uint64(0)
    for place in range(8):
        swapped |= ((value >> np.uint64(8 * place)) & np.uint64(0xFF)) << np.uint64(56 - 8 * place)
    return swapped


@kernel
def _rotated_32(value: np.uint64, bits: int) -> np.uint64:
    return ((value << np.uint64(bits)) | (value >> np.uint64(32 - bits))) & _LOW


@kernel
def _round_32(value: np.uint64, read: np.uint64) -> np.uint64:
    return _rotated_32((value + read * _P32_2) & _LOW, 13) * _P32_1 & _LOW


@kernel
def _read_32(text: U8, at: int) -> np.uint64:
    read = np.uint64(0)
    for place in range(4):
        read |= np.uint64(text[at + place]) << np.uint64(8 * place)
    return read


@kernel
def read_64(text: U8, at: int) -> np.uint64:
    """The little-endian number of eight bytes."""
    return _read_32(text, at) | _read_32(text, at + 4) << np.uint64(32)
