# SPDX-License-Identifier: GPL-2.0-only
"""Unpacking of kernel payloads: gzip, bzip2, lzma, xz (with its BCJ filters), lz4 and zstd.

Pure functions over bytes; any thread. The input is hostile: output is bounded, the memory a decoder may ask for
too, and truncated or damaged input is a BuildError. Anything behind the compressed stream is ignored, because
the kernel's build appends four bytes with the unpacked size to every format but gzip.

Formats: RFC 1952, RFC 8878 (zstd), the lz4 frame description's "legacy frame" (which frame decoders refuse), and
Linux's scripts/Makefile.lib, which calls the compressors.
"""

from __future__ import annotations

import bz2
import io
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from typing import Protocol

import lz4.block  # type: ignore[import-untyped]
import zstandard

from dom0.builder.errors import BuildError

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""

CHUNK = 4 << 20
"""Output is produced in pieces of at most this size."""
DECODER_MEMORY = 512 << 20
"""What a decoder may take for itself; the largest dictionary kernels are packed with is 128 MiB."""

LZ4_LEGACY_MAGIC = b"\x02\x21\x4c\x18"
LZ4_BLOCK_MAX = 8 << 20
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"

_MAGICS = (
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x5d\0\0", "lzma"),
    (LZ4_LEGACY_MAGIC, "lz4"),
    (ZSTD_MAGIC, "zstd"),
    (b"\x89LZO\0", "lzo"),
)


class _Damaged(Exception):
    """A stream does not make sense; says how."""


class _Decoder(Protocol):
    """What zlib-like decoders of the standard library have in common."""

    @property
    def eof(self) -> bool: ...
    def decompress(self, data: bytes, max_length: int = ..., /) -> bytes: ...


def detect(data: bytes | memoryview) -> str | None:
    """The name of the compression format `data` begins with, if it is a known one."""
    head = bytes(data[:8])
    for magic, name in _MAGICS:
        if head.startswith(magic):
            return name
    return None


def decompress(
    data: bytes | memoryview, limit: int, *, what: str = "kernel", progress: Progress | None = None
) -> bytes:
    """Unpack the stream `data` begins with; BuildError if that cannot be done or gives more than `limit` bytes."""
    name = detect(data)
    if name is None:
        raise BuildError(f"{what}: unknown compression format (starts with {bytes(data[:6]).hex(' ')})")
    pieces_of = _DECODERS.get(name)
    if pieces_of is None:
        raise BuildError(f"{what}: {name} compression is not supported; use gzip, bzip2, lzma, xz, lz4 or zstd")
    unpacked = io.BytesIO()
    try:
        for piece in pieces_of(data):
            unpacked.write(piece)
            size = unpacked.tell()
            if size > limit:
                raise BuildError(f"{what}: unpacks to more than {limit >> 20} MiB")
            if progress is not None:
                progress(f"Unpacking {os.path.basename(what)} ({name})", size, 0)
    except (_Damaged, OSError, ValueError, EOFError, MemoryError, zlib.error, lzma.LZMAError) as error:
        raise BuildError(f"{what}: {name} data is damaged ({error})") from None
    except (lz4.block.LZ4BlockError, zstandard.ZstdError) as error:
        raise BuildError(f"{what}: {name} data is damaged ({error})") from None
    return unpacked.getvalue()


def gunzip_whole(data: bytes, limit: int) -> bytes | None:
    """Unpack `data` if it is one gzip member and nothing else and gives at most `limit` bytes; None otherwise."""
    if detect(data) != "gzip" or len(data) < 18 or int.from_bytes(data[-4:], "little") > limit:
        return None
    decoder = zlib.decompressobj(31)
    try:
        unpacked = decoder.decompress(data, limit + 1)
    except zlib.error:
        return None
    if not decoder.eof or decoder.unused_data or len(unpacked) > limit:
        return None
    return unpacked


def _pump(decoder: _Decoder, data: bytes) -> Iterator[bytes]:
    """All output of a decoder that keeps its unread input itself."""
    while not decoder.eof:
        piece = decoder.decompress(data, CHUNK)
        data = b""
        if not piece and not decoder.eof:
            raise _Damaged("it ends too early")
        yield piece


def _gzip(data: bytes | memoryview) -> Iterator[bytes]:
    decoder = zlib.decompressobj(31)
    rest = bytes(data)
    while not decoder.eof:
        piece = decoder.decompress(rest, CHUNK)
        rest = decoder.unconsumed_tail
        if not piece and not decoder.eof:
            raise _Damaged("it ends too early")
        yield piece


def _bzip2(data: bytes | memoryview) -> Iterator[bytes]:
    return _pump(bz2.BZ2Decompressor(), bytes(data))


def _lzma(data: bytes | memoryview) -> Iterator[bytes]:
    return _pump(lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=DECODER_MEMORY), bytes(data))


def _xz(data: bytes | memoryview) -> Iterator[bytes]:
    return _pump(lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=DECODER_MEMORY), bytes(data))


def _lz4(data: bytes | memoryview) -> Iterator[bytes]:
    """A legacy frame: after the magic, blocks of a 32-bit length and that many bytes, to the end of the data.

    Every block but the last unpacks to 8 MiB.
    """
    view = memoryview(data)
    offset = len(LZ4_LEGACY_MAGIC)
    size = 0
    while offset < len(view):
        if len(view) - offset < 4:
            raise _Damaged("it ends too early")
        length = int.from_bytes(view[offset : offset + 4], "little")
        offset += 4
        if offset == len(view) and length == size & 0xFFFFFFFF:
            return
        if length > len(view) - offset:
            raise _Damaged("it ends too early")
        if size % LZ4_BLOCK_MAX:
            raise _Damaged("there is more behind its last block")
        piece = lz4.block.decompress(view[offset : offset + length], uncompressed_size=LZ4_BLOCK_MAX)
        if not piece:
            raise _Damaged("it has an empty block")
        offset += length
        size += len(piece)
        yield piece
    if size == 0:
        raise _Damaged("it ends too early")


def _zstd(data: bytes | memoryview) -> Iterator[bytes]:
    frame = bytes(data[: _zstd_frame_length(data)])
    decoder = zstandard.ZstdDecompressor(max_window_size=DECODER_MEMORY)
    with decoder.stream_reader(io.BytesIO(frame)) as reader:
        while piece := reader.read(CHUNK):
            yield piece


def _zstd_frame_length(data: bytes | memoryview) -> int:
    """Where the first zstd frame ends, by its block headers: the streaming decoder does not report a missing end."""
    view = memoryview(data)
    if len(view) < 6:
        raise _Damaged("it ends too early")
    descriptor = view[4]
    single_segment = bool(descriptor & 0x20)
    content_size = (1 if single_segment else 0, 2, 4, 8)[descriptor >> 6]
    offset = 5 + (0 if single_segment else 1) + (0, 1, 2, 4)[descriptor & 3] + content_size
    last = False
    while not last:
        if offset + 3 > len(view):
            raise _Damaged("it ends too early")
        header = int.from_bytes(view[offset : offset + 3], "little")
        last = bool(header & 1)
        kind = header >> 1 & 3
        offset += 3 + (1 if kind == 1 else header >> 3)
    offset += 4 if descriptor & 4 else 0
    if offset > len(view):
        raise _Damaged("it ends too early")
    return offset


_DECODERS: dict[str, Callable[[bytes | memoryview], Iterator[bytes]]] = {
    "gzip": _gzip,
    "bzip2": _bzip2,
    "lzma": _lzma,
    "xz": _xz,
    "lz4": _lz4,
    "zstd": _zstd,
}
