# SPDX-License-Identifier: GPL-2.0-only
"""For who writes drivers: whole machines that run the same way every time, and faults on demand.

`seeded` runs a machine (hypervisor, store, dom0, Python guests) on one thread in an order that a seed decides, with a
clock that jumps over sleep. `faults` does to it what real machines do to drivers. `battery` puts a pair of drivers
through both. `plugin` is all of that for pytest. See docs/testing-drivers.md.
"""
