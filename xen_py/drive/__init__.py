# SPDX-License-Identifier: GPL-2.0-only
"""What the drivers of both halves stand on: the xenbus handshake carried out, and rings that tasks can wait on.

The protocols themselves (`xen_py.io`) are pure; this package is where they meet trio. dom0's backends and domU's
frontends build on it with a store, event channels and memory of their own kind, which they bring along (`bus`):
it imports neither. All of a half is owned by one thread, the one that runs its trio loop.
"""
