# SPDX-License-Identifier: GPL-2.0-only
"""What a guest can ask for: the only place that reads structures a guest supplies.

One module a group of calls; each handler decodes, checks a copy, calls the mechanism in `xen_py`, and raises `XenError`
for what cannot be done. `dispatch` is the one boundary where that becomes -errno. What is not here answers -ENOSYS and
is logged once for each domain and call.
"""

from hypercalls.table import dispatch

__all__ = ["dispatch"]
