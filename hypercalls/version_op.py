# SPDX-License-Identifier: GPL-2.0-only
"""xen_version: who we are and what we can (version.h, features.h)."""

from __future__ import annotations

from struct import Struct

from xen_py.abi import version
from xen_py.abi.xen import VmAssist
from xen_py.domain import Domain
from xen_py.types import PAGE_SIZE, Errno, XenError
from xen_py.vcpu import Vcpu

_features = Struct("<II")

# XENFEAT_* bits of submap 0 that are always there for a PV guest
_PAE_PGDIR_ABOVE_4GB = 4
_FEATURES = (
    1 << 5  # mmu_pt_update_preserve_ad
    | 1 << 6  # highmem_assist: MMUEXT_CLEAR_PAGE and COPY_PAGE
    | 1 << 7  # gnttab_map_avail_bits
    | 1 << 13  # memory_op_vnode_supported
    | 1 << 17  # direct_mapped
)


def features(d: Domain) -> int:
    """XENVER_get_features, submap 0."""
    return _FEATURES | (bool(d.vm_assist >> VmAssist.PAE_EXTENDED_CR3 & 1) << _PAE_PGDIR_ABOVE_4GB)


def xen_version(d: Domain, v: Vcpu, command: int, arg: int, *_: int) -> int:
    command &= 0xFFFFFFFF
    write = d.access.write
    if command == 0:
        return version.XENVER_VERSION
    if command == 1:
        write(arg, version.XEN_EXTRA.encode().ljust(16, b"\0"))
    elif command == 2:
        fields = ((b"unicorn", 64), (b"xen-py", 16), (b"localdomain", 32), (b"", 32))
        write(arg, b"".join(text.ljust(size, b"\0") for text, size in fields))
    elif command == 3:
        write(arg, version.XEN_CAPS.encode().ljust(1024, b"\0"))
    elif command == 4:
        write(arg, bytes(64))
    elif command == 5:
        write(arg, version.XEN_VIRT_START.to_bytes(8, "little"))
    elif command == 6:
        submap, _features_in = _features.unpack(d.access.read(arg, 8))
        if submap:
            raise XenError(Errno.EINVAL, f"feature submap {submap}")
        write(arg, _features.pack(submap, features(d)))
    elif command == 7:
        return PAGE_SIZE
    elif command == 8:
        write(arg, d.spec.uuid)
    elif command == 9:
        write(arg, bytes(1024))
    elif command == 10:
        raise XenError(Errno.ENODATA, "no build id")
    else:
        raise XenError(Errno.ENOSYS, f"xen_version {command}")
    return 0
