# SPDX-License-Identifier: GPL-2.0-only
"""The layout of a domain's store page, for both ends of it.

Source: docs/misc/xenstore-ring.txt, xen/include/public/io/xs_wire.h.
"""

from __future__ import annotations

from typing import Final

PAGE_SIZE: Final = 4096
RING_SIZE: Final = 1024
REQ, RSP = 0, 1024
INDICES = 2048
REQ_CONS, REQ_PROD, RSP_CONS, RSP_PROD, FEATURES, CONNECTION, ERROR, EVTCHN_PORT = range(8)
"""The eight words behind the rings."""
MASK: Final = 0xFFFFFFFF

CONNECTED, RECONNECT = 0, 1
ERROR_NONE, ERROR_COMM, ERROR_RINGIDX, ERROR_PROTO = range(4)


def check_page(page: memoryview) -> None:
    if page.readonly or page.nbytes != PAGE_SIZE:
        raise ValueError(f"a store page is {PAGE_SIZE} writable bytes, not {page.nbytes}")
