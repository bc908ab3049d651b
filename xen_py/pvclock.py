# SPDX-License-Identifier: GPL-2.0-only
"""The time a guest reads without asking: vcpu_time_info and the wall clock (xen.h), in guest memory.

    system_time(t) = system_time + ((rdtsc - tsc_timestamp) << tsc_shift) * tsc_to_system_mul >> 32

The version is odd while the record is being written. Pure functions over memory; called by the domain's thread.
"""

from __future__ import annotations

from struct import Struct

from xen_py.abi.xen import (
    SHARED_INFO_WC_NSEC,
    SHARED_INFO_WC_SEC,
    SHARED_INFO_WC_SEC_HI,
    SHARED_INFO_WC_VERSION,
)
from xen_py.clock import Clock

_time = Struct("<IIQQIbBxx")
_u32 = Struct("<I")
TIME_INFO_SIZE = 32


def scale(tsc_khz: int) -> tuple[int, int]:
    """(tsc_to_system_mul, tsc_shift) for a TSC of that frequency."""
    ticks = tsc_khz * 1000
    shift = 0
    while ticks > 2_000_000_000:
        ticks >>= 1
        shift -= 1
    while ticks <= 1_000_000_000:
        ticks <<= 1
        shift += 1
    return (1_000_000_000 << 32) // ticks, shift


def time_record(version: int, tsc: int, now: int, mul: int, shift: int) -> bytes:
    """A struct vcpu_time_info of 32 bytes."""
    return _time.pack(version, 0, tsc & 0xFFFFFFFFFFFFFFFF, now, mul, shift, 0)


def write_wall_clock(shared_info: memoryview, clock: Clock) -> None:
    """Wall-clock time at system time zero."""
    seconds, ns = divmod(clock.wall() - clock.now(), 1_000_000_000)
    version = _u32.unpack_from(shared_info, SHARED_INFO_WC_VERSION)[0]
    _u32.pack_into(shared_info, SHARED_INFO_WC_VERSION, version + 1 & 0xFFFFFFFF | 1)
    _u32.pack_into(shared_info, SHARED_INFO_WC_SEC, seconds & 0xFFFFFFFF)
    _u32.pack_into(shared_info, SHARED_INFO_WC_NSEC, ns)
    _u32.pack_into(shared_info, SHARED_INFO_WC_SEC_HI, seconds >> 32)
    _u32.pack_into(shared_info, SHARED_INFO_WC_VERSION, (version + 2) & 0xFFFFFFFE)
