# SPDX-License-Identifier: GPL-2.0-only
"""Names of the commands that hypercalls take as their first argument, for people who read traces.

Source: the public headers named beside each. Pure.
"""

from __future__ import annotations

from xen_py.abi.xen import Hypercall


def _names(text: str) -> dict[int, str]:
    return dict(enumerate(text.split()))


_COMMANDS: dict[int, dict[int, str]] = {
    # event_channel.h
    Hypercall.EVENT_CHANNEL_OP: _names(
        "bind_interdomain bind_virq bind_pirq close send status alloc_unbound bind_ipi bind_vcpu unmask reset"
        " init_control expand_array set_priority reset_cont"
    ),
    # grant_table.h
    Hypercall.GRANT_TABLE_OP: _names(
        "map_grant_ref unmap_grant_ref setup_table dump_table transfer copy query_size unmap_and_replace set_version"
        " get_status_frames get_version swap_grant_ref cache_flush"
    ),
    # sched.h
    Hypercall.SCHED_OP: _names("yield block shutdown poll remote_shutdown shutdown_code watchdog pin_override"),
    # vcpu.h
    Hypercall.VCPU_OP: _names(
        "initialise up down is_up get_runstate_info register_runstate_memory_area set_periodic_timer"
        " stop_periodic_timer set_singleshot_timer stop_singleshot_timer register_vcpu_info send_nmi get_physid"
        " register_vcpu_time_memory_area"
    ),
    # version.h
    Hypercall.XEN_VERSION: _names(
        "version extraversion compile_info capabilities changeset platform_parameters get_features pagesize"
        " guest_handle commandline build_id"
    ),
    # memory.h
    Hypercall.MEMORY_OP: {
        0: "increase_reservation",
        1: "decrease_reservation",
        2: "maximum_ram_page",
        3: "current_reservation",
        4: "maximum_reservation",
        5: "machphys_mfn_list",
        6: "populate_physmap",
        7: "add_to_physmap",
        9: "memory_map",
        11: "exchange",
        12: "machphys_mapping",
    },
    # physdev.h has more; these are what PV guests without devices of their own ask for
    Hypercall.PHYSDEV_OP: {2: "eoi", 6: "set_iopl", 7: "set_iobitmap", 8: "apic_read", 9: "apic_write"},
    # xen.h
    Hypercall.CONSOLE_IO: _names("write read"),
    Hypercall.VM_ASSIST: _names("enable disable"),
    # callback.h
    Hypercall.CALLBACK_OP: _names("register unregister"),
}


def command_name(number: int, command: int) -> str:
    """The command's name; "" for a hypercall that takes none, its number where it is unknown."""
    commands = _COMMANDS.get(number)
    if commands is None:
        return ""
    return commands.get(command & 0xFFFFFFFF, str(command & 0xFFFFFFFF))
