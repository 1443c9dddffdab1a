"""Damages encoded images in the ways in which files are damaged, or written by other programs."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

import numpy as np

HEADER_BYTES = 256
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


def mutated(data: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """One mutation of a file that is not empty: its name, and the bytes."""
    kinds: list[Callable[[bytes, np.random.Generator], bytes]] = [
        flipped_bit_of_header,
        flipped_bits,
        truncated,
        overwritten,
        edited_header,
        edited_header,
    ]
    if _chunks(data):
        kinds += [chunk_removed, chunk_duplicated, chunks_swapped, chunk_edited] * 2
    kind = kinds[rng.integers(len(kinds))]
    return kind.__name__, kind(data, rng)


def flipped_bit_of_header(data: bytes, rng: np.random.Generator) -> bytes:
    return _flip(data, rng, min(HEADER_BYTES, len(data)), 1)


def flipped_bits(data: bytes, rng: np.random.Generator) -> bytes:
    return _flip(data, rng, len(data), int(rng.integers(1, 9)))


def _flip(data: bytes, rng: np.random.Generator, length: int, number: int) -> bytes:
    changed = bytearray(data)
    for position in rng.integers(0, length, number):
        changed[position] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def truncated(data: bytes, rng: np.random.Generator) -> bytes:
    """Anywhere, or within the last bytes."""
    if rng.integers(2):
        return data[: -int(rng.integers(1, min(40, len(data)) + 1))]
    return data[: int(rng.integers(0, len(data)))]


def overwritten(data: bytes, rng: np.random.Generator) -> bytes:
    """By up to 64 equal or random bytes."""
    start, length = int(rng.integers(0, len(data))), int(rng.integers(1, 65))
    length = min(length, len(data) - start)
    by = rng.bytes(length) if rng.integers(2) else bytes([rng.choice([0, 255])]) * length
    return data[:start] + by + data[start + length :]


def edited_header(data: bytes, rng: np.random.Generator) -> bytes:
    """One, two or four bytes of the header hold a number that is often meant there."""
    size = int(rng.choice([1, 2, 4]))
    number = int(rng.choice([0, 1, 2, 3, 4, 8, 16, 24, 32, 255, 256**size - 1])) % 256**size
    start = int(rng.integers(0, max(1, min(HEADER_BYTES, len(data)) - size)))
    order = "little" if rng.integers(2) else "big"
    return data[:start] + number.to_bytes(size, order) + data[start + size :]


def chunk_removed(data: bytes, rng: np.random.Generator) -> bytes:
    start, end = _any_chunk(data, rng)
    return data[:start] + data[end:]


def chunk_duplicated(data: bytes, rng: np.random.Generator) -> bytes:
    start, end = _any_chunk(data, rng)
    return data[:end] + data[start:end] + data[end:]


def chunks_swapped(data: bytes, rng: np.random.Generator) -> bytes:
    """A chunk stands before another one than before."""
    start, end = _any_chunk(data, rng)
    rest = data[:start] + data[end:]
    place, _ = _any_chunk(rest, rng) if _chunks(rest) else (len(rest), 0)
    return rest[:place] + data[start:end] + rest[place:]


def chunk_edited(data: bytes, rng: np.random.Generator) -> bytes:
    """A byte of a chunk changes; the checksum of a PNG is right all the same."""
    start, end = _any_chunk(data, rng)
    head, tail = (8, 4) if data.startswith(_PNG_MAGIC) else (4, 0)
    if end - start <= head + tail:
        return data[:start] + data[end:]
    # The first bytes of a chunk say what it is.
    position = start + head + int(rng.integers(0, min(end - start - head - tail, 24)))
    changed = bytearray(data)
    changed[position] = int(rng.integers(256))
    if tail:
        checksum = zlib.crc32(bytes(changed[start + 4 : end - 4]))
        changed[end - 4 : end] = struct.pack(">I", checksum)
    return bytes(changed)


def _any_chunk(data: bytes, rng: np.random.Generator) -> tuple[int, int]:
    chunks = _chunks(data)
    return chunks[rng.integers(len(chunks))]


def _chunks(data: bytes) -> list[tuple[int, int]]:
    """Where the chunks of a PNG or WebP or the segments of a JPEG start and end, if it is one."""
    chunks = []
    if data.startswith(_PNG_MAGIC):
        position = 8
        while position + 12 <= len(data):
            end = position + 12 + int.from_bytes(data[position : position + 4], "big")
            chunks.append((position, min(end, len(data))))
            position = end
    elif data.startswith(b"RIFF"):
        position = 12
        while position + 8 <= len(data):
            length = int.from_bytes(data[position + 4 : position + 8], "little")
            end = position + 8 + length + length % 2
            chunks.append((position, min(end, len(data))))
            position = end
    elif data.startswith(b"\xff\xd8"):
        position = 2
        while position + 4 <= len(data) and data[position] == 0xFF:
            end = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
            chunks.append((position, min(end, len(data))))
            if data[position + 1] == 0xDA:
                break
            position = end
    return chunks
