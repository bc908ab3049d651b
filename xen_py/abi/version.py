# SPDX-License-Identifier: GPL-2.0-only
"""The version of Xen whose ABI and tools this project presents: one answer for guests (XENVER) and for `xl info`.

Source: xen/include/public/version.h; the capability string's form is that of a Xen that runs 64-bit PV guests.
"""

from __future__ import annotations

XEN_MAJOR = 4
XEN_MINOR = 17
XEN_EXTRA = ".0-xenpy"
"""XENVER_extraversion, at most 15 bytes."""
XEN_VERSION = f"{XEN_MAJOR}.{XEN_MINOR}{XEN_EXTRA}"
XENVER_VERSION = XEN_MAJOR << 16 | XEN_MINOR
"""What XENVER_version answers."""
XEN_CAPS = "xen-3.0-x86_64 "
"""XENVER_capabilities; each capability is followed by a space."""
XEN_VIRT_START = 0xFFFF_8000_0000_0000
"""XENVER_platform_parameters: where the hypervisor's part of a guest's address space begins."""
