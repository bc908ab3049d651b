# SPDX-License-Identifier: GPL-2.0-only
"""Whose grant table an operation is about, as xen/common/grant_table.c and Xen's default policy (xsm/dummy.h) have it.

A guest uses the grants that others made for it; their tables it neither sees nor changes, it learns only whether such a
domain is there.
"""

from __future__ import annotations

from xen_py.abi.grant_table import GrantStatus
from xen_py.abi.xen import DOMID_FIRST_RESERVED, DOMID_SELF
from xen_py.domain import Domain
from xen_py.foreign import OthersGrants
from xen_py.grants import GrantError
from xen_py.types import DomId, Errno, Port, XenError


def is_there(d: Domain, domid: int) -> bool:
    """Whether there is such a domain; the host knows, and tells it by how it refuses to show us a port of it."""
    if domid >= DOMID_FIRST_RESERVED:
        return False
    try:
        d.link.evtchn_status(DomId(domid), Port(0))
    except XenError as error:
        return error.errno != Errno.ESRCH
    return True


def status_of(d: Domain, domid: int) -> GrantStatus:
    """Whether the domain may see or change the table of that one: OKAY for its own, the refusal for any other."""
    if domid in (d.domid, DOMID_SELF):
        return GrantStatus.OKAY
    return GrantStatus.PERMISSION_DENIED if is_there(d, domid) else GrantStatus.BAD_DOMAIN


def others(d: Domain, domid: int) -> OthersGrants:
    """The way to the grants of another domain. No domain has a reserved id, nor is DOMID_SELF one here."""
    if domid >= DOMID_FIRST_RESERVED:
        raise GrantError(GrantStatus.BAD_DOMAIN, f"domain {domid:#x}")
    return d.link.others
