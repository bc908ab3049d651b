# SPDX-License-Identifier: GPL-2.0-only
"""Whose grants a guest may use: its own. Of other domains it learns whether they are there, as from Xen.

Lookups differ as they do in xen/common/grant_table.c: some operations take DOMID_SELF, a mapping does not.
"""

from __future__ import annotations

from xen_py.abi.grant_table import GrantStatus
from xen_py.abi.xen import DOMID_FIRST_RESERVED, DOMID_SELF
from xen_py.domain import Domain
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


def status_of(d: Domain, domid: int, *, self_allowed: bool = True) -> GrantStatus:
    """OKAY for the domain itself, the refusal for any other."""
    if domid == d.domid or (domid == DOMID_SELF and self_allowed):
        return GrantStatus.OKAY
    return GrantStatus.PERMISSION_DENIED if is_there(d, domid) else GrantStatus.BAD_DOMAIN
