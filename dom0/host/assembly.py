# SPDX-License-Identifier: GPL-2.0-only
"""A domain put together from its parts: hypervisor, hypercalls, engine. The one place that names all three.

Imported by the template process, so that every VM process finds all of it in memory.
"""

from __future__ import annotations

from hypercalls.table import dispatch
from xen_py.clock import Clock, RealClock
from xen_py.domain import Domain
from xen_py.engine.selftest import verify_precise_stops
from xen_py.engine.unicorn import UnicornEngine
from xen_py.link import HostLink
from xen_py.memory import GuestMemory
from xen_py.spec import DomainSpec


def make_domain(spec: DomainSpec, memory: GuestMemory, link: HostLink, clock: Clock) -> Domain:
    return Domain(spec, memory, link, clock, UnicornEngine(), dispatch)


def warm_up() -> None:
    """Do once what every domain would do first and a confined process cannot: find libraries, measure the TSC.

    And see once for the host that the emulator can be trusted.
    """
    verify_precise_stops()
    RealClock().tsc_khz()
