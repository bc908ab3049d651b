# SPDX-License-Identifier: GPL-2.0-only
"""Identifiers and rights of the store, each a type of its own; every module of the package may use them.

Source: xen/include/public/xen.h (reserved domain ids), docs/misc/xenstore.txt (permissions).
"""

from __future__ import annotations

from typing import NewType

DomId = NewType("DomId", int)
"""A domain identifier as it stands in requests and permissions."""
TxId = NewType("TxId", int)
"""A transaction of one connection; 0 means "no transaction"."""

DOM0 = DomId(0)
DOMID_SELF = DomId(0x7FF0)
DOMID_ANY = DomId(0x7FF5)
"""In a permission: every domain."""
DOMID_INVALID = DomId(0x7FF4)
DOMID_MAX = 65535

READ = 1
WRITE = 2
OWNER = 4
"""Bits of what a domain may do with a node. OWNER is held by the owner and by dom0 only."""
