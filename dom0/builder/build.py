# SPDX-License-Identifier: GPL-2.0-only
"""From a kernel image to a domain's memory, ready for its first instruction.

`build` writes into memory that is new (all zero) and that nobody else uses yet; it blocks for a fraction of a second,
so the host calls it in a worker thread. What it leaves to the hypervisor: validating the page tables, the time fields
of shared_info, everything that is not memory.
"""

from __future__ import annotations

import os
import struct
from array import array

import attrs

from dom0.builder import compression, pagetables
from dom0.builder.compression import Progress
from dom0.builder.errors import BuildError
from dom0.builder.hypercall_page import HYPERCALL_PAGE
from dom0.builder.kernel import KernelImage, load_kernel, read_file
from dom0.builder.layout import Layout, plan
from xen_py.abi.start_info import MAGIC, MAX_GUEST_CMDLINE, StartFlags, StartInfo
from xen_py.memory import GuestMemory
from xen_py.start import StartState
from xen_py.types import PAGE_SHIFT, PAGE_SIZE, Mfn, Pfn, Port

__all__ = ["BuildError", "Built", "KernelImage", "build", "load_kernel", "load_ramdisk"]

_VCPU_INFO_SIZE = 64
_UPCALL_MASK_OFFSET = 1
_LEGACY_VCPUS = 32
_GRANT_ENTRY_V1 = struct.Struct("<HHI")
_GTF_PERMIT_ACCESS = 1
_DOM0 = 0
_STEP = 16 << 10
_ZEROS = bytes(_STEP)


@attrs.frozen
class Built:
    start: StartState
    store_mfn: Mfn
    console_mfn: Mfn
    guest_os: str
    layout: Layout
    log: tuple[str, ...]
    """What real Xen's builder would log about the image and the layout, a line each."""


def load_ramdisk(path: str) -> bytes:
    """The ramdisk in file `path`, as it is; BuildError if it cannot be read."""
    return read_file(path, "ramdisk")


def build(
    image: KernelImage,
    ramdisk: bytes | None,
    cmdline: str,
    memory: GuestMemory,
    nr_pages: int,
    *,
    store_port: Port,
    console_port: Port,
    vcpus: int,
    flags: int = 0,
    progress: Progress | None = None,
) -> Built:
    """Put `image` into `memory`, of which PFNs below `nr_pages` are populated; BuildError if it does not fit."""
    if not 0 < nr_pages <= memory.geometry.max_pages:
        raise ValueError(f"{nr_pages} pages in memory made for {memory.geometry.max_pages}")
    if not 0 < vcpus <= _LEGACY_VCPUS:
        raise BuildError(f"{vcpus} vCPUs; a domain can have 1 to {_LEGACY_VCPUS}")
    arguments = cmdline.encode("utf-8", "surrogateescape")
    if len(arguments) >= MAX_GUEST_CMDLINE or b"\0" in arguments:
        raise BuildError(
            f"kernel command line of {len(arguments)} bytes; it must be below {MAX_GUEST_CMDLINE} and have no NUL in it"
        )
    layout, ramdisk = _plan(image, ramdisk, nr_pages)
    _copy_kernel(image, memory, progress)
    unmapped = ramdisk is not None and image.notes.unmapped_ramdisk
    if ramdisk is not None:
        at = layout["ramdisk"].pfn << PAGE_SHIFT
        memory.bytes[at : at + len(ramdisk)] = ramdisk
    _write_p2m(layout, memory, nr_pages)
    code = image.code + _write_hypercall_page(image, memory)
    pagetables.write(layout, code, memory)

    def mfn(name: str) -> Mfn:
        return Mfn(memory.geometry.mfn_base + layout[name].pfn)

    own_p2m = len(layout.mappings) == 2
    start_info = StartInfo(
        magic=MAGIC.encode(),
        nr_pages=nr_pages,
        shared_info=memory.geometry.shared_info_mfn << PAGE_SHIFT,
        flags=flags | (StartFlags.MOD_START_PFN if unmapped else 0),
        store_mfn=mfn("xenstore"),
        store_evtchn=store_port,
        console_mfn=mfn("console"),
        console_evtchn=console_port,
        pt_base=layout["page tables"].vstart,
        nr_pt_frames=layout["page tables"].pages,
        mfn_list=layout.mappings[1].va if own_p2m else layout["phys2mach"].vstart,
        mod_start=0 if ramdisk is None else layout["ramdisk"].pfn if unmapped else layout["ramdisk"].vstart,
        mod_len=0 if ramdisk is None else layout["ramdisk"].pages * PAGE_SIZE if unmapped else len(ramdisk),
        cmd_line=arguments,
        first_p2m_pfn=layout["phys2mach"].pfn if own_p2m else 0,
        nr_p2m_frames=layout["phys2mach"].pages if own_p2m else 0,
    ).pack()
    memory.frame(mfn("start info"))[: len(start_info)] = start_info
    _write_shared_info(memory)
    _write_grants(memory, mfn("console"), mfn("xenstore"))
    start = StartState(
        rip=image.entry,
        rsp=layout["boot stack"].vend,
        rsi=layout["start info"].vstart,
        cr3=mfn("page tables"),
        page_tables=tuple((Pfn(run.pfn), run.count) for mapping in layout.mappings for run in mapping.tables),
    )
    log = (f"kernel {image.name}: {image.packing}", *image.log, *layout.log)
    return Built(start, mfn("xenstore"), mfn("console"), image.notes.guest_os, layout, log)


def _plan(image: KernelImage, ramdisk: bytes | None, nr_pages: int) -> tuple[Layout, bytes | None]:
    """The layout, and the ramdisk as it will be in memory.

    A gzip'd ramdisk is unpacked here, as Xen 4.17 does: it is much faster than in the guest. Not one that is
    anything more than a single gzip member (Linux takes several archives in a row), nor one that would
    fill more than a quarter of the domain, which needs the same room again for the files.
    """

    def lay_out(size: int | None) -> Layout:
        return plan(
            virt_base=image.virt_base,
            kernel_start=image.start,
            kernel_end=image.end,
            init_p2m=image.notes.init_p2m,
            ramdisk_size=size,
            ramdisk_unmapped=image.notes.unmapped_ramdisk,
            nr_pages=nr_pages,
        )

    if ramdisk is None:
        return lay_out(None), None
    layout = lay_out(len(ramdisk))
    unpacked = compression.gunzip_whole(ramdisk, nr_pages * PAGE_SIZE // 4)
    if unpacked is None:
        return layout, ramdisk
    try:
        return lay_out(len(unpacked)), unpacked
    except BuildError:
        return layout, ramdisk


def _copy_kernel(image: KernelImage, memory: GuestMemory, progress: Progress | None) -> None:
    """Copy the segments, but leave out what is zero anyway: the memory is new, and untouched pages cost nothing."""
    source = memoryview(image.data)
    total = sum(segment.filesz for segment in image.segments)
    done = 0
    for segment in image.segments:
        for at in range(0, segment.filesz, _STEP):
            length = min(_STEP, segment.filesz - at)
            if not image.data.startswith(_ZEROS[:length] if length < _STEP else _ZEROS, segment.offset + at):
                to = segment.start + at
                memory.bytes[to : to + length] = source[segment.offset + at : segment.offset + at + length]
        done += segment.filesz
        if progress is not None:
            progress(f"Loading {os.path.basename(image.name)}", done, total)


def _write_p2m(layout: Layout, memory: GuestMemory, nr_pages: int) -> None:
    """PFN n is at MFN mfn_base + n."""
    at = layout["phys2mach"].pfn << PAGE_SHIFT - 3
    mfn_base = memory.geometry.mfn_base
    memory.words[at : at + nr_pages] = array("Q", range(mfn_base, mfn_base + nr_pages))


def _write_hypercall_page(image: KernelImage, memory: GuestMemory) -> tuple[tuple[int, int], ...]:
    """Fill the page the kernel's note asks for; gives its guest-physical range, for it is code."""
    if image.notes.hypercall_page is None:
        return ()
    page = image.notes.hypercall_page - image.virt_base & -PAGE_SIZE
    if not image.start <= page < image.end:
        raise BuildError(f"{image.name}: its hypercall page {image.notes.hypercall_page:#x} is not within the kernel")
    memory.bytes[page : page + PAGE_SIZE] = HYPERCALL_PAGE
    return () if any(start <= page < end for start, end in image.code) else ((page, page + PAGE_SIZE),)


def _write_shared_info(memory: GuestMemory) -> None:
    page = memory.frame(memory.geometry.shared_info_mfn)
    for vcpu in range(_LEGACY_VCPUS):
        page[vcpu * _VCPU_INFO_SIZE + _UPCALL_MASK_OFFSET] = 1


def _write_grants(memory: GuestMemory, console: Mfn, store: Mfn) -> None:
    """The two reserved entries: 0 the console, 1 xenstore, both to dom0."""
    page = memory.frame(memory.geometry.grant_mfn(0))
    for entry, frame in enumerate((console, store)):
        _GRANT_ENTRY_V1.pack_into(page, entry * _GRANT_ENTRY_V1.size, _GTF_PERMIT_ACCESS, _DOM0, frame)
