# SPDX-License-Identifier: GPL-2.0-only
"""Every payload format unpacks; damaged, truncated, oversized and unknown ones are one-line errors."""

from __future__ import annotations

import bz2
import gzip
import lzma
import random
import struct
from collections.abc import Callable

import lz4.block  # type: ignore[import-untyped]
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from dom0.builder.compression import CHUNK, LZ4_BLOCK_MAX, decompress, detect, gunzip_whole
from dom0.builder.errors import BuildError

_RANDOM = random.Random(1)
SAMPLE = _RANDOM.randbytes(50_000) + b"kernel " * 30_000 + bytes(200_000)
BCJ = [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20}]


def _lz4(data: bytes) -> bytes:
    out = b"\x02\x21\x4c\x18"
    for at in range(0, len(data), LZ4_BLOCK_MAX):
        block = lz4.block.compress(data[at : at + LZ4_BLOCK_MAX], store_size=False)
        out += struct.pack("<I", len(block)) + block
    return out


def _zstd_stream(data: bytes) -> bytes:
    """As the kernel's build does it: from a pipe, so without the size in the header."""
    packer = zstandard.ZstdCompressor(level=3).compressobj()
    return packer.compress(data) + packer.flush()


PACKERS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", lambda data: gzip.compress(data, mtime=0)),
    "bzip2": ("bzip2", bz2.compress),
    "lzma": ("lzma", lambda data: lzma.compress(data, lzma.FORMAT_ALONE)),
    "xz": ("xz", lambda data: lzma.compress(data, lzma.FORMAT_XZ, lzma.CHECK_CRC32)),
    "xz with BCJ": ("xz", lambda data: lzma.compress(data, lzma.FORMAT_XZ, lzma.CHECK_CRC32, filters=BCJ)),
    "lz4": ("lz4", _lz4),
    "zstd": ("zstd", zstandard.ZstdCompressor(write_checksum=True).compress),
    "zstd from a pipe": ("zstd", _zstd_stream),
}
packers = pytest.mark.parametrize("packer", PACKERS)


@packers
@pytest.mark.parametrize("trailer", [b"", struct.pack("<I", len(SAMPLE))])
def test_unpacks(packer: str, trailer: bytes) -> None:
    name, pack = PACKERS[packer]
    packed = pack(SAMPLE) + trailer
    assert detect(packed) == name
    assert decompress(packed, len(SAMPLE)) == SAMPLE
    assert decompress(memoryview(packed), len(SAMPLE)) == SAMPLE


@packers
def test_output_is_bounded(packer: str) -> None:
    """32 MiB of zeros pack into next to nothing; the limit ends that early."""
    packed = PACKERS[packer][1](bytes(32 << 20))
    done: list[int] = []
    with pytest.raises(BuildError, match="unpacks to more than 8 MiB"):
        decompress(packed, 8 << 20, progress=lambda what, size, total: done.append(size))
    assert max(done) <= (8 << 20) + max(CHUNK, LZ4_BLOCK_MAX)


@packers
def test_truncated(packer: str) -> None:
    packed = PACKERS[packer][1](SAMPLE)
    for length in (8, 20, 100, len(packed) // 2, len(packed) - 9):
        with pytest.raises(BuildError, match=r"data is damaged") as caught:
            decompress(packed[:length], len(SAMPLE))
        assert "\n" not in str(caught.value)


@packers
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_garbage_raises_nothing_else(packer: str, data: st.DataObject) -> None:
    packed = bytearray(PACKERS[packer][1](b"abcd" * 5000 + bytes(3000)))
    for _ in range(data.draw(st.integers(1, 4))):
        packed[data.draw(st.integers(8, len(packed) - 1))] = data.draw(st.integers(0, 255))
    try:
        decompress(bytes(packed), 1 << 20)
    except BuildError:
        return


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x89LZO\0\r\n\x1a\n more", "lzo compression is not supported"),
        (b"\x01\x02\x03\x04\x05\x06\x07", r"unknown compression format \(starts with 01 02 03 04 05 06\)"),
        (b"", "unknown compression format"),
    ],
)
def test_unsupported_formats_are_named(data: bytes, message: str) -> None:
    with pytest.raises(BuildError, match=message):
        decompress(data, 1 << 20)


def test_lz4_size_that_does_not_fit() -> None:
    with pytest.raises(BuildError, match="lz4 data is damaged"):
        decompress(_lz4(SAMPLE) + struct.pack("<I", len(SAMPLE) + 1), len(SAMPLE))


def test_decoder_memory_is_bounded() -> None:
    """A header that asks for a dictionary of 3 GiB is refused."""
    packed = bytearray(lzma.compress(SAMPLE, lzma.FORMAT_ALONE))
    packed[1:5] = struct.pack("<I", 3 << 30)
    with pytest.raises(BuildError, match="lzma data is damaged"):
        decompress(bytes(packed), len(SAMPLE))


@pytest.mark.parametrize(
    ("ramdisk", "limit", "unpacked"),
    [
        (gzip.compress(SAMPLE), len(SAMPLE), SAMPLE),
        (gzip.compress(SAMPLE), len(SAMPLE) - 1, None),
        (gzip.compress(SAMPLE) + gzip.compress(b"second archive"), 1 << 20, None),
        (gzip.compress(SAMPLE) + bytes(512), 1 << 20, None),
        (gzip.compress(SAMPLE)[:-9] + bytes(9), 1 << 20, None),
        (bz2.compress(SAMPLE), 1 << 20, None),
        (b"070701", 1 << 20, None),
        (b"\x1f\x8b", 1 << 20, None),
    ],
)
def test_gunzip_whole(ramdisk: bytes, limit: int, unpacked: bytes | None) -> None:
    assert gunzip_whole(ramdisk, limit) == unpacked
