# SPDX-License-Identifier: GPL-2.0-only
"""What the reference counts must be, worked out from nothing but the tables and who holds what. Slow and obvious."""

from __future__ import annotations

from xen_py.abi.xen import VCPU_INFO_SIZE
from xen_py.domain import Domain
from xen_py.frames import FrameFlag, FrameType

FRAME = 0x000FFFFFFFFFF000
PRESENT, RW, NX = 1, 2, 1 << 63


def expected(d: Domain) -> tuple[list[int], list[int], list[int]]:
    """(references, type references, executable mappings) of every frame."""
    f = d.frames
    n = f.count
    refs, types, code = [0] * n, [0] * n, [0] * n

    def hold(mfn: int, typed: bool = True) -> None:
        i = mfn - f.base
        refs[i] += 1
        types[i] += typed

    for i in range(n):
        flags = f.flags[i]
        if flags & FrameFlag.SPECIAL:
            refs[i] += 1
            types[i] += 1
        if flags & FrameFlag.RESERVED:
            refs[i] += 1
        if flags & FrameFlag.PINNED:
            hold(f.base + i)
    for v in d.vcpus:
        if v.root:
            hold(v.root)
        if v.user_root:
            hold(v.user_root)
        for mfn in (*v.gdt_frames, *v.ldt_frames.values()):
            hold(mfn)
        if v.info_registered:
            assert v.info_offset + VCPU_INFO_SIZE <= n << 12
            hold(f.base + (v.info_offset >> 12))
    for i in range(n):
        level = f.types[i]
        if not (f.flags[i] & FrameFlag.ALLOCATED and f.type_counts[i] and FrameType.L1 <= level <= FrameType.L4):
            continue
        for slot, entry in enumerate(d.memory.words[i * 512 : (i + 1) * 512].tolist()):
            if not entry & PRESENT or (level == FrameType.L4 and 256 <= slot < 272):
                continue
            target = (entry & FRAME) >> 12
            assert 0 <= target - f.base < n, f"entry {entry:#x} in slot {slot} of an L{level} leads out of the domain"
            assert f.flags[target - f.base] & FrameFlag.ALLOCATED
            if level > FrameType.L1:
                if target - f.base == i:
                    assert not entry & RW, "a table maps itself writable"
                    continue
                kind = f.types[target - f.base]
                assert kind in (level - 1, level)
                assert kind != level or not entry & RW, "a linear page table is writable"
                hold(target)
            else:
                assert not entry & RW or f.types[target - f.base] == FrameType.WRITABLE
                hold(target, bool(entry & RW))
                code[target - f.base] += not entry & NX
    return refs, types, code


def check(d: Domain) -> None:
    """The frame table holds exactly what it should."""
    refs, types, code = expected(d)
    f = d.frames
    assert f.refs.tolist() == refs
    assert f.type_counts.tolist() == types
    assert f.code_maps.tolist() == code
    for i in range(f.count):
        allocated = bool(f.flags[i] & FrameFlag.ALLOCATED)
        assert allocated == bool(refs[i])
        if types[i]:
            assert f.flags[i] & FrameFlag.VALIDATED
        table = bool(types[i]) and FrameType.L1 <= f.types[i] <= FrameType.SEGDESC
        special = bool(f.flags[i] & FrameFlag.SPECIAL)
        assert d.memory.barred[i] == (table or special or not allocated), f"frame {i} is open to the outside, or not"
    ram = sum(bool(f.flags[i] & FrameFlag.ALLOCATED) for i in range(f.geometry.max_pages))
    assert f.allocated == ram
