# SPDX-License-Identifier: GPL-2.0-only
"""Every command of xl: its name, its help, and where it is implemented.

Tables and pure functions. Names, order, usage and which commands take `-N` are those of `cmd_table` in
tools/xl/xl_cmdtable.c (`dt-overlay` is built for Arm only and left out). A command without `run` is known by name and
not built yet.
"""

from __future__ import annotations

import attrs

NOT_YET = "(not yet)"


@attrs.frozen
class Spec:
    """One command."""

    name: str
    usage: str
    summary: str
    run: str = ""
    """`module:function` below dom0.xl."""
    options: str = ""
    can_dry_run: bool = False
    modifies: bool = False


_CREATE_OPTIONS = """\
-c                      Connect to the console after the domain is created.
-d                      Enable debug messages.
-e                      Do not wait in the background for the death of the domain.
-F                      Run in foreground until death of the domain.
-f FILE, --defconfig=FILE
                     Use the given configuration file.
-h                      Print this help.
-n, --dryrun            Dry run - prints the resulting configuration
                         (deprecated in favour of global -N option).
-p                      Leave the domain paused after it is created.
-q, --quiet             Quiet.
-V, --vncviewer         Connect to the VNC display after the domain is created.
-A, --vncviewer-autopass
                        Pass VNC password to viewer via stdin.
--ignore-global-affinity-masks Ignore global masks in xl.conf."""

_LIST_OPTIONS = """\
-l, --long              Output all VM details
-v, --verbose           Prints out UUIDs and security context
-Z, --context           Prints out security context
-c, --cpupool           Prints the cpupool the domain is in
-n, --numa              Prints out NUMA node affinity"""

_DESTROY_OPTIONS = "-f                      Permit destroying domain 0 (which xen-py still refuses)"


def _stop_options(what: str) -> str:
    return f"""\
-a, --all               {what} all guest domains.
-h                      Print this help.
-F                      Accepted; PV guests have no ACPI to fall back to.
-w, --wait              Wait for guest(s) to {what.lower()}."""


_CONSOLE_OPTIONS = """\
-t <type>               console type: pv
-n <number>             console number: 0
-e <escape>             escape character, ^x or x (default ^])"""

_INFO_OPTIONS = """\
-n, --numa              List host NUMA topology information
<field>                 Print the values of the fields that begin so"""


_DETACH_OPTIONS = "-f, --force             Take it from the guest without asking it"


def _later(rows: str) -> list[Spec]:
    """Rows of `flags | name | usage | summary`; D: takes -N, M: changes something, -: neither."""
    specs = []
    for row in rows.strip().splitlines():
        flags, name, usage, summary = (cell.strip() for cell in row.split(" | "))
        specs.append(Spec(name, usage, f"{summary} {NOT_YET}", can_dry_run="D" in flags, modifies="M" in flags))
    return specs


TABLE: tuple[Spec, ...] = (
    Spec("create", "<ConfigFile> [options] [vars]", "Create a domain from config file <filename>",
           "cmd_create:create", _CREATE_OPTIONS, can_dry_run=True, modifies=True),
    *_later("DM | config-update | <Domain> <ConfigFile> [options] [vars] | Replace the configuration kept for reboots"),
    Spec("list", "[options] [Domain]", "List information about all/some domains", "cmd_list:list_domains",
           _LIST_OPTIONS),
    Spec("destroy", "[options] <Domain>", "Terminate a domain immediately", "cmd_control:destroy",
           _DESTROY_OPTIONS, modifies=True),
    Spec("shutdown", "[options] <-a|Domain>", "Issue a shutdown signal to a domain", "cmd_control:shutdown",
           _stop_options("Shutdown"), modifies=True),
    Spec("reboot", "[options] <-a|Domain>", "Issue a reboot signal to a domain", "cmd_control:reboot",
           _stop_options("Reboot"), modifies=True),
    *_later("""
        M | pci-attach | <Domain> <PCI_SPEC_STRING> | Give a guest a PCI device of the host
        M | pci-detach | <Domain> <PCI_SPEC_STRING> | Take a PCI device back from a guest
        - | pci-list | <Domain> | Show the PCI devices a guest holds
        M | pci-assignable-add | [options] <BDF> | Free a PCI device for guests
        M | pci-assignable-remove | [options] <BDF>|NAME | Take a PCI device out of reach of guests
        - | pci-assignable-list | [options] | Show the PCI devices guests may be given
    """),
    Spec("pause", "<Domain>", "Pause execution of a domain", "cmd_control:pause", modifies=True),
    Spec("unpause", "<Domain>", "Unpause a paused domain", "cmd_control:unpause", modifies=True),
    Spec("console", "[options] <Domain>", "Attach to domain's console", "cmd_console:console", _CONSOLE_OPTIONS),
    *_later("""
        - | vncviewer | [options] <Domain> | Show a guest's display by VNC
        M | save | [options] <Domain> <CheckpointFile> [<ConfigFile>] | Write a running guest to a file
        M | migrate | [options] <Domain> <host> | Move a running guest to another host
        M | restore | [options] [<ConfigFile>] <CheckpointFile> | Go on with a guest from a file
        M | migrate-receive | - for internal use only | Receive a migrating guest
        M | suspend | <Domain> | Suspend a guest to memory
        M | resume | <Domain> | Wake a guest suspended to memory
        M | dump-core | <Domain> <filename> | Write a guest's memory as a core file
    """),
    Spec("cd-insert", "<Domain> <VirtualDevice> <path>", "Insert a cdrom into a guest's cd drive",
           "cmd_block:cd_insert", can_dry_run=True, modifies=True),
    Spec("cd-eject", "<Domain> <VirtualDevice>", "Eject a cdrom from a guest's cd drive", "cmd_block:cd_eject",
           can_dry_run=True, modifies=True),
    *_later("""
        M | mem-max | <Domain> <MemMB[b|k|m|g|t]> | Set how much memory a guest may ever have
        M | mem-set | <Domain> <MemMB[b|k|m|g|t]> | Set how much memory a guest has now
        M | button-press | <Domain> <Button> | Press a guest's ACPI power or sleep button
    """),
    Spec("vcpu-list", "[Domain, ...]", "List the VCPUs for all/some domains", "cmd_list:vcpu_list"),
    *_later("""
        DM | vcpu-pin | [option] <Domain> <VCPU|all> <Hard affinity|-|all> <Soft affinity|-|all> | Tie vCPUs to CPUs
        M | vcpu-set | [option] <Domain> <vCPUs> | Set how many vCPUs a guest has online
    """),
    Spec("vm-list", "", "List guest domains, excluding dom0, stubdoms, etc.", "cmd_list:vm_list"),
    Spec("info", "[options] [field]", "Get information about Xen host", "cmd_info:info", _INFO_OPTIONS),
    *_later("""
        - | sharing | [Domain] | Show which memory guests share
        M | sched-credit | [-d <Domain> [-w[=WEIGHT]|-c[=CAP]]] [-s ...] [-p CPUPOOL] | Credit scheduler settings
        M | sched-credit2 | [-d <Domain> [-w[=WEIGHT]]] [-p CPUPOOL] | Credit2 scheduler settings
        M | sched-rtds | [-d <Domain> [-v[=VCPUID/all]] [-p[=PERIOD]] [-b[=BUDGET]]] | Real-time scheduler settings
    """),
    Spec("domid", "<DomainName>", "Convert a domain name to domain id", "cmd_list:domid"),
    Spec("domname", "<DomainId>", "Convert a domain id to domain name", "cmd_list:domname"),
    Spec("rename", "<Domain> <NewDomainName>", "Rename a domain", "cmd_control:rename", modifies=True),
    *_later("""
        M | trigger | <Domain> <nmi|reset|init|power|sleep|s3resume> [<VCPU>] | Send a guest an NMI, reset, ...
        M | sysrq | <Domain> <letter> | Send a guest's kernel a magic SysRq letter
    """),
    Spec("debug-keys", "<Keys>", "Send debug keys to Xen", "cmd_info:debug_keys", modifies=True),
    *_later("""
        M | set-parameters | <Params> | Change the hypervisor's parameters
    """),
    Spec("dmesg", "[-c]", "Read and/or clear dmesg buffer", "cmd_info:dmesg",
           "  -c                        Clear dmesg buffer as well as printing it"),
    Spec("netcap", "bridge=<name>|<Domain> [<DevId>] [-w FILE] [--snap N] [--seconds N]",
         "Capture frames of a bridge or of a network card", "cmd_netcap:netcap"),
    Spec("trace", "[--domain D] [--kinds K,...] [--seconds N] [--json|--perfetto FILE]",
         "Show what running guests do, as it happens", "cmd_trace:trace"),
    *_later("""
        - | top |  | Watch host and guests as they run
        - | channel-list | <Domain(s)> | Show guests' channels
    """),
    Spec("network-attach",
           "<Domain> [type=<type>] [mac=<mac>] [bridge=<bridge>] [ip=<ip>] [script=<script>] [backend=<BackDomain>] "
           "[vifname=<name>] [rate=<rate>] [model=<model>] [accel=<accel>] [mtu=<mtu>]",
           "Create a new virtual network device", "cmd_network:network_attach", can_dry_run=True, modifies=True),
    Spec("network-list", "<Domain(s)>", "List virtual network interfaces for a domain", "cmd_network:network_list"),
    Spec("network-detach", "<Domain> <DevId|mac>", "Destroy a domain's virtual network device",
           "cmd_network:network_detach", modifies=True),
    Spec("block-attach", "<Domain> <disk-spec-component(s)>...", "Create a new virtual block device",
           "cmd_block:block_attach", can_dry_run=True, modifies=True),
    Spec("block-list", "<Domain(s)>", "List virtual block devices for a domain", "cmd_block:block_list"),
    Spec("block-detach", "[option] <Domain> <DevId>", "Destroy a domain's virtual block device",
           "cmd_block:block_detach", _DETACH_OPTIONS, modifies=True),
    *_later("""
        DM | vtpm-attach | <Domain> [uuid=<uuid>] [backend=<BackDomain>] | Give a running guest a TPM
        - | vtpm-list | <Domain(s)> | Show guests' TPMs
        M | vtpm-detach | <Domain> <DevId|uuid> | Take a TPM from a running guest
        DM | vkb-attach | <Domain> <vkb-spec-component(s)>... | Give a running guest a keyboard
        - | vkb-list | <Domain(s)> | Show guests' keyboards
        M | vkb-detach | <Domain> <DevId> | Take a keyboard from a running guest
        DM | vdispl-attach | <Domain> [key=value ...] | Give a running guest a display
        - | vdispl-list | <Domain(s)> | Show guests' displays
        M | vdispl-detach | <Domain> <DevId> | Take a display from a running guest
        DM | vsnd-attach | <Domain> <vsnd-spec-component(s)>... | Give a running guest a sound card
        - | vsnd-list | <Domain(s)> | Show guests' sound cards
        M | vsnd-detach | <Domain> <DevId> | Take a sound card from a running guest
    """),
    Spec("uptime", "[-s] [Domain]", "Print uptime for all/some domains", "cmd_list:uptime"),
    *_later("""
        - | claims |  | Show memory set aside for guests being built
        DM | cpupool-create | [options] [<ConfigFile>] [Variable=value ...] | Make a pool of CPUs
        - | cpupool-list | [-c|--cpus] [<CPU Pool>] | Show the pools of CPUs
        M | cpupool-destroy | <CPU Pool> | Dissolve a pool of CPUs
        M | cpupool-rename | <CPU Pool> <new name> | Rename a pool of CPUs
        M | cpupool-cpu-add | <CPU Pool> <CPU nr>|node:<node nr> | Put a CPU into a pool
        M | cpupool-cpu-remove | <CPU Pool> <CPU nr>|node:<node nr> | Take a CPU out of a pool
        M | cpupool-migrate | <Domain> <CPU Pool> | Move a guest to another pool of CPUs
        M | cpupool-numa-split |  | Make a pool of CPUs of each NUMA node
        - | getenforce |  | Show whether the security policy is enforced
        M | setenforce | <1|0|Enforcing|Permissive> | Set whether the security policy is enforced
        M | loadpolicy | <policy file> | Load a security policy
        M | remus | [options] <Domain> [<host>] | Keep a live copy of a guest on another host
        M | devd | [options] | Serve backends from a driver domain
        M | psr-hwinfo | [options] | Show what the host can do about shared caches
        M | psr-cmt-attach | <Domain> | Watch a guest's use of shared caches
        M | psr-cmt-detach | <Domain> | Stop watching a guest's use of shared caches
        M | psr-cmt-show | <PSR-CMT-Type> <Domain> | Show a guest's use of shared caches
        M | psr-cat-set | [options] <Domain> <CBM> | Set a guest's share of the caches
        M | psr-cat-show | [options] <Domain> | Show a guest's share of the caches
        M | psr-mba-set | [options] <Domain> <THRTL> | Set a guest's share of memory bandwidth
        M | psr-mba-show | <Domain> | Show a guest's share of memory bandwidth
        M | usbctrl-attach | <Domain> [type=pv] [version=<version>] [ports=<number>] | Give a guest a USB controller
        M | usbctrl-detach | <Domain> <DevId> | Take a USB controller from a guest
        M | usbdev-attach | <Domain> hostbus=<busnum> hostaddr=<devnum> [key=value ...] | Give a guest a USB device
        M | usbdev-detach | <Domain> <controller> <port> | Take a USB device from a guest
        - | usb-list | <Domain> | Show a guest's USB controllers and devices
        M | qemu-monitor-command | <Domain> <Command> | Send a command to a guest's device model
        - | xenstore-quota-get | <Domain>|-g | Show what a guest may use of the store
        M | xenstore-quota-set | <Domain>|-g <quota>=<val>... | Set what a guest may use of the store
    """),
)  # fmt: skip

_BY_NAME = {spec.name: spec for spec in TABLE}


def spec(name: str) -> Spec:
    """The command of exactly that name."""
    return _BY_NAME[name]


def lookup(word: str) -> Spec | None:
    """The command of that name, or the only one that begins so."""
    if word in _BY_NAME:
        return _BY_NAME[word]
    candidates = [spec for spec in TABLE if spec.name.startswith(word)]
    return candidates[0] if len(candidates) == 1 else None


def overview() -> str:
    """`xl help`."""
    lines = ["Usage xl [-vfNtT] <subcommand> [args]\n", "xl full list of subcommands:\n"]
    for each in TABLE:
        gap = f"\n {'':19}" if len(each.name) > 19 else ""
        lines.append(f" {each.name:<19} {gap}{' ' if gap else ''}{each.summary}")
    return "\n".join(lines)


def help_text(command: Spec) -> str:
    """`xl help COMMAND`."""
    flags = "f" * command.modifies + "N" * command.can_dry_run
    text = f"Usage: xl [-vtT{flags}] {command.name} {command.usage}\n\n{command.summary}.\n"
    return text + (f"\nOptions:\n\n{command.options}" if command.options else "")
