# SPDX-License-Identifier: GPL-2.0-only
"""The commands against a fake host: what they ask, print and return."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dom0.toolstack.config import DomainConfig, ShutdownAction
from tests.xl.conftest import Xl
from tests.xl.fake_host import FakeHost, Refused, row

NOSUCH = (1, "", "nosuch is an invalid domain identifier (rc=-6)\n")
CFG = 'name="gpv2"\nkernel="vmlinuz"\nmemory=128\n'


@pytest.fixture
def cfg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "guest.cfg"
    path.write_text(CFG)
    return str(path)


def changes(host: FakeHost) -> list[tuple[str, dict[str, Any]]]:
    return [asked for asked in host.asked if asked[0] not in ("domain.list", "domain.console")]


# Commands that show


def test_list(host: FakeHost, xl: Xl) -> None:
    status, out, err = xl("list")
    assert (status, err) == (0, "")
    assert out.splitlines()[2] == "gpv                                          3   128     1     -b----       6.3"
    assert xl("li", "gpv").out.splitlines()[1:] == out.splitlines()[2:]
    assert xl("list", "3").out == xl("list", "gpv").out
    assert xl("list", "-v", "gpv").out == xl("list", "--verb", "gpv").out
    assert "Security Label" in xl("list", "-Z").out


def test_list_of_nobody(host: FakeHost, xl: Xl) -> None:
    assert xl("list", "nosuch") == NOSUCH
    assert xl("list", "77") == (1, "", "Error: Domain '77' does not exist.\n")
    assert xl("list", "a", "b") == (1, xl("help", "list").out, "")


def test_list_long(host: FakeHost, xl: Xl) -> None:
    host.configs[3] = DomainConfig(name="gpv", kernel="/guest/vmlinuz", memory_kb=131072).to_plain()
    out = xl("list", "-l", "gpv").out
    assert out.startswith('[\n    {\n        "domid": 3,\n        "config": {\n            "c_info": {\n')
    assert out.endswith(
        '            "on_reboot": "restart",\n            "on_soft_reset": "soft_reset"\n        }\n    }\n]\n\n'
    )
    assert '"name": "Domain-0"' in xl("list", "-l").out


def test_list_long_of_a_domain_that_goes(host: FakeHost, xl: Xl) -> None:
    host.refusals["domain.config"] = Refused("gone")
    assert xl("list", "-l", "gpv") == (0, "[\n\n]\n\n", "")


def test_list_long_distrusts_the_host(host: FakeHost, xl: Xl) -> None:
    host.configs[3] = {"name": "x"}
    assert xl("list", "-l") == (1, "", "xl: the xen-py host sent a bad configuration: a domain configuration without "
                                       "'kernel'\n")  # fmt: skip


def test_a_host_that_lists_badly(host: FakeHost, xl: Xl) -> None:
    del host.domains[3]["uuid"]
    assert xl("list") == (1, "", "xl: the xen-py host left out 'uuid' in a list; is it of another version?\n")


def test_vm_list_and_vcpu_list(host: FakeHost, xl: Xl) -> None:
    assert xl("vm-list").out.splitlines()[2].endswith("  3    gpv                           ")
    assert xl("vcpu-list").out.splitlines()[1:] == [
        "Domain-0                             0     0    0   r--       6.3  all / all",
        "gpv                                  3     0    0   -b-       6.3  all / all",
    ]
    assert len(xl("vcpu-list", "gpv").out.splitlines()) == 2
    assert xl("vcpu-list", "nosuch")[2] == NOSUCH[2]


def test_domid_and_domname(host: FakeHost, xl: Xl) -> None:
    assert xl("domid", "gpv") == (0, "3\n", "")
    assert xl("domid", "nosuch") == (
        1, "", "Can't get domid of domain name 'nosuch', maybe this domain does not exist.\n"
    )  # fmt: skip
    assert xl("domname", "3") == (0, "gpv\n", "")
    assert xl("domname", "0") == (0, "Domain-0\n", "")
    assert xl("domname", "9") == (
        1, "", "Can't get domain name of domain id '9', maybe this domain does not exist.\n"
    )  # fmt: skip
    assert xl("domname", "gpv") == (1, "", "Invalid domain id.\n\n")


def test_uptime(host: FakeHost, xl: Xl) -> None:
    assert [line[:38] for line in xl("uptime").out.splitlines()] == [
        "Name                                ID",
        "Domain-0                             0",
        "gpv                                  3",
    ]
    assert xl("uptime", "-s", "gpv").out.endswith(", gpv (3)\n")


def test_info(host: FakeHost, xl: Xl) -> None:
    assert xl("info") == (0, "host                   : dom0\nxen_major              : 4\n", "")
    assert xl("info", "host") == (0, "dom0\n", "")
    assert xl("info", "nosuch") == (0, "", "")
    assert "numa_info" in xl("info", "-n").out
    assert xl("info", "-x") == (1, "", "xl info -x: xen-py does not have this yet\n")


def test_dmesg(host: FakeHost, xl: Xl) -> None:
    assert xl("dmesg") == (0, "(XEN) clear=False\n(d3) ?[31mred\n", "")
    assert xl("dmesg", "-c").out.startswith("(XEN) clear=True\n")
    assert xl("dmesg", "--clear").out.startswith("(XEN) clear=True\n")


def test_debug_keys(host: FakeHost, xl: Xl) -> None:
    assert xl("debug-keys", "gh") == (0, "", "")
    assert host.asked[-1] == ("host.debug_keys", {"keys": "gh"})
    host.refusals["host.debug_keys"] = Refused("no")
    result = xl("debug-keys", "g")
    assert (result.status, result.err.splitlines()[-1]) == (1, "cannot send debug keys: g")
    assert xl("debug-keys").status != 0


# Commands that act


@pytest.mark.parametrize("command", ["destroy", "pause", "unpause"])
def test_simple_acts(host: FakeHost, xl: Xl, command: str) -> None:
    assert xl(command, "nosuch") == NOSUCH
    assert xl(command, "77")[2] == "77 is an invalid domain identifier (rc=-6)\n"
    assert xl(command, "gpv") == (0, "", "")
    assert changes(host) == [(f"domain.{command}", {"domid": 3})]


def test_domain_0_is_not_destroyed(host: FakeHost, xl: Xl) -> None:
    status, _, err = xl("destroy", "0")
    assert (status, err.splitlines()[0]) == (1, "Not destroying domain 0; use -f to force.")
    host.refusals["domain.destroy"] = Refused("Domain 0 is this host; xen-py stop ends it")
    assert xl("destroy", "-f", "Domain-0") == (1, "", "Domain 0 is this host; xen-py stop ends it\n")


def test_rename(host: FakeHost, xl: Xl) -> None:
    assert xl("rename", "gpv", "hpv") == (0, "", "")
    assert changes(host) == [("domain.rename", {"domid": 3, "name": "hpv"})]
    host.refusals["domain.rename"] = Refused('Domain with name "x" already exists.')
    assert xl("rename", "hpv", "x") == (
        1, "", "Domain with name \"x\" already exists.\nCan't rename domain 'hpv'.\n"
    )  # fmt: skip


def test_shutdown(host: FakeHost, xl: Xl) -> None:
    assert xl("shutdown") == (1, "", "You must specify -a or a domain id.\n\n")
    assert xl("shutdown", "nosuch") == NOSUCH
    assert xl("shutdown", "gpv") == (0, "", "Shutting down domain 3\n")
    assert changes(host) == [("domain.shutdown", {"domid": 3, "reason": "poweroff"})]


def test_shutdown_and_wait(host: FakeHost, xl: Xl) -> None:
    assert xl("-v", "shutdown", "-w", "gpv") == (
        0,
        "",
        "Shutting down domain 3\nWaiting for 1 domains\nDomain 3 has been shut down, reason code 0\n",
    )


def test_reboot_all_and_wait(host: FakeHost, xl: Xl) -> None:
    host.domains[5] = row(5, "other")
    status, _, err = xl("reboot", "-aw")
    assert status == 0
    assert err.splitlines()[:3] == ["Rebooting domain 3", "Rebooting domain 5", "Waiting for 2 domains"]
    assert sorted(err.splitlines()[3:]) == [f"Domain {domid} has been shut down, reason code 1" for domid in (3, 5)]


def test_waiting_for_death(host: FakeHost, xl: Xl) -> None:
    original = host.domain_wait

    def wait(domid: int, event: str) -> dict[str, Any]:
        if event == "death":
            host.end(domid, None)
        return original(domid, event) if domid in host.domains else {"reason": None}

    host.domain_wait = wait  # type: ignore[method-assign]
    assert xl("shutdown", "-ww", "gpv")[2].splitlines()[2:] == [
        "Domain 3 has been shut down, reason code 0",
        "Domain 3 continue waiting for death",
        "Domain 3 has been destroyed",
    ]


def test_waiting_for_a_domain_already_gone(host: FakeHost, xl: Xl) -> None:
    host.refusals["domain.wait"] = Refused("no such domain")
    assert xl("shutdown", "-w", "gpv")[2].splitlines()[2:] == ["Domain 3 has been destroyed"]


def test_a_guest_that_cannot_shut_down(host: FakeHost, xl: Xl) -> None:
    host.refusals["domain.shutdown"] = Refused("PV control interface not available")
    assert xl("shutdown", "gpv") == (
        1, "", "Shutting down domain 3\nPV control interface not available\nshutdown failed (rc=-3)\n"
    )  # fmt: skip


# create


def created(host: FakeHost) -> tuple[DomainConfig, bool]:
    (params,) = [params for method, params in host.asked if method == "domain.create"]
    return DomainConfig.from_plain(params["config"]), params["paused"]


def test_create(host: FakeHost, xl: Xl, cfg: str, tmp_path: Path) -> None:
    assert xl("create", cfg) == (0, "", f"Parsing config from {cfg}\n")
    config, paused = created(host)
    assert (config.name, config.kernel, config.memory_kb, paused) == ("gpv2", str(tmp_path / "vmlinuz"), 131072, False)


@pytest.mark.parametrize(
    "words",
    [
        ("guest.cfg", "memory=64", "ramdisk='initrd'"),
        ("-f", "guest.cfg", "memory=64", "ramdisk='initrd'"),
        ("memory=64", "ramdisk='initrd'", "--defconfig=guest.cfg"),
        ("memory=64", "guest.cfg", "ramdisk='initrd'"),
        ("other.cfg", "-f", "guest.cfg", "memory=64", "ramdisk='initrd'"),
        ("/dev/null", "name='gpv2'", "kernel='vmlinuz'", "memory=64", "ramdisk='initrd'"),
    ],
)
def test_create_with_overrides(host: FakeHost, xl: Xl, cfg: str, tmp_path: Path, words: tuple[str, ...]) -> None:
    assert xl("create", "-q", *words)[:2] == (0, "") if words[0].startswith("-") else xl("create", *words).status == 0
    config, _ = created(host)
    assert (config.name, config.memory_kb, config.ramdisk) == ("gpv2", 65536, str(tmp_path / "initrd"))


def test_create_from_a_fetched_image(
    host: FakeHost, xl: Xl, cfg: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kernel = tmp_path / "xen-py" / "images" / "debian" / "vmlinuz"
    assert xl("create", "-q", cfg, "kernel='image:debian/vmlinuz'") == (
        3, "", f"image:debian/vmlinuz: there is no {kernel}; get it with: xen-py image fetch debian\n"
    )  # fmt: skip
    kernel.parent.mkdir(parents=True)
    kernel.touch()
    assert xl("create", "-q", cfg, "kernel='image:debian/vmlinuz'") == (0, "", "")
    assert created(host)[0].kernel == str(kernel)


def test_create_paused_quietly(host: FakeHost, xl: Xl, cfg: str) -> None:
    assert xl("create", "-pq", cfg) == (0, "", "")
    assert created(host)[1] is True


def test_create_unwatched_leaves_the_domain_as_it_ends(host: FakeHost, xl: Xl, cfg: str) -> None:
    xl("create", "-e", cfg)
    config, _ = created(host)
    assert {config.on_poweroff, config.on_reboot, config.on_crash} == {ShutdownAction.PRESERVE}


@pytest.mark.parametrize("words", [("-N", "create"), ("create", "-n"), ("create", "--dryrun")])
def test_dry_run_asks_no_host(rundir: Path, xl: Xl, cfg: str, words: tuple[str, ...]) -> None:
    status, out, err = xl(*words, cfg, "uuid='d5e5a122-2c71-49e3-b921-ad7cc94b60dc'")
    assert (status, err) == (0, f"Parsing config from {cfg}\n")
    assert out.startswith(
        '{\n    "c_info": {\n        "type": "pv",\n        "name": "gpv2",\n        "uuid": "d5e5a122-'
    )
    assert '"kernel": "vmlinuz"' in out
    assert out.endswith('    "on_reboot": "restart",\n    "on_soft_reset": "soft_reset"\n}\n')


def test_debug_shows_the_configuration_on_stderr(host: FakeHost, xl: Xl, cfg: str) -> None:
    status, out, err = xl("create", "-d", cfg)
    assert (status, out) == (0, "")
    assert '"max_memkb": 131072,' in err


@pytest.mark.parametrize(
    ("text", "status", "lines"),
    [
        ("name = [\n", 1, ["{cfg}:1: config parsing error near `': syntax error, unexpected $end, expecting ']'",
                           "Failed to parse config: Invalid argument"]),
        ('name="x"\ntype="pv"\n', 1, ["Neither kernel nor bootloader specified"]),
        (CFG + "memmory=1\n", 0, ["{cfg}:4: warning: unknown parameter `memmory' is ignored, did you mean `memory'?"]),
        (CFG + "vtpm=['']\n", 1, ["{cfg}:4: parameter `vtpm': xen-py does not have this yet"]),
        (CFG + "type='pvh'\n", 1, ['{cfg}:4: type="pvh": xen-py boots PV guests only, it does not have this yet']),
    ],
)  # fmt: skip
def test_bad_configurations(host: FakeHost, xl: Xl, cfg: str, text: str, status: int, lines: list[str]) -> None:
    Path(cfg).write_text(text)
    expected = [f"Parsing config from {cfg}", *(line.replace("{cfg}", cfg) for line in lines)]
    assert xl("create", cfg) == (status, "", "\n".join(expected) + "\n")


def test_no_file(xl: Xl) -> None:
    assert xl("create", "/nonexistent.cfg") == (
        3, "", "Failed to read config file: /nonexistent.cfg: No such file or directory\n"
    )  # fmt: skip
    assert xl("create") == (6, "", "Config file not specified and none in save file\n")
    assert xl("create", "a", "b") == (2, xl("help", "create").out, "")
    assert xl("create", "-V", "a") == (1, "", "xl create -V: xen-py does not have this yet\n")


def test_a_host_that_cannot_build(host: FakeHost, xl: Xl, cfg: str) -> None:
    host.refusals["domain.create"] = Refused("/vmlinuz: not a kernel", 3)
    assert xl("create", cfg) == (3, "", f"Parsing config from {cfg}\n/vmlinuz: not a kernel\n")


def test_progress_is_silent_without_a_terminal(host: FakeHost, xl: Xl, cfg: str) -> None:
    host.progress = [("unpack", 1, 2), ("unpack", 2, 2)]
    assert xl("create", cfg) == (0, "", f"Parsing config from {cfg}\n")


def test_progress_by_carriage_return(host: FakeHost, xl: Xl, cfg: str) -> None:
    host.progress = [("unpack", 1, 2), ("unp\x1back", 2, 2), ("fetch", 5, 0)]
    err = xl("-t", "create", cfg).err
    assert err.split("\n")[1:] == ["\runpack: 50%\runp?ack: 100%\rfetch: 5     ", ""]
    assert xl("-t", "create", "-q", cfg).err == ""


def test_foreground_follows_the_domain_through_a_restart(host: FakeHost, xl: Xl, cfg: str) -> None:
    original = host.domain_wait

    def wait(domid: int, event: str) -> dict[str, Any]:
        if event == "shutdown":
            host.end(domid, 1 if domid == 4 else 0)
        else:
            successor = row(5, "gpv2", uuid=host.domains[domid]["uuid"])
            host.end(domid, None)
            if domid == 4:
                host.domains[5] = successor
            return {"reason": None}
        return original(domid, event)

    host.domain_wait = wait  # type: ignore[method-assign]
    status, _, err = xl("create", "-F", cfg)
    assert status == 0
    lines = [line.split(" [pid")[0] for line in err.splitlines()]
    assert lines[1:] == [
        "Waiting for domain gpv2 (domid 4) to die",
        "Domain 4 has shut down, reason code 1 0x1",
        "Action for shutdown reason code 1 is restart",
        "Domain 4 needs to be cleaned up: destroying the domain",
        "Done. Rebooting now",
        "Waiting for domain gpv2 (domid 5) to die",
        "Domain 5 has shut down, reason code 0 0x0",
        "Action for shutdown reason code 0 is destroy",
        "Domain 5 needs to be cleaned up: destroying the domain",
        "Done. Exiting now",
    ]


def test_foreground_of_a_domain_destroyed(host: FakeHost, xl: Xl, cfg: str) -> None:
    host.refusals["domain.wait"] = Refused("no such domain")
    assert xl("create", "-F", cfg)[2].splitlines()[2:] == ["Domain 4 has been destroyed."]


# console


@pytest.mark.parametrize(
    ("words", "status", "err"),
    [
        (("nosuch",), 1, NOSUCH[2]),
        (("0",), 22, "Can't specify Domain-0\n"),
        (("-t", "vga", "gpv"), 1, "console type supported are: pv, serial, vuart\n"),
        (("-t", "serial", "gpv"), 1, "gpv has no serial console: it is a PV guest\n"),
        (("-n", "1", "gpv"), 1, "gpv has no console 1: xen-py does not have further consoles yet\n"),
        (("-e", "ab", "gpv"), 22, "Invalid escape argument\n"),
    ],
)
def test_console_mistakes(host: FakeHost, xl: Xl, words: tuple[str, ...], status: int, err: str) -> None:
    assert xl("console", *words) == (status, "", err)


def test_a_console_nobody_serves(host: FakeHost, xl: Xl, rundir: Path, cfg: str) -> None:
    host.domain_console = lambda domid: {"path": f"{rundir}/none"}  # type: ignore[method-assign]
    lost = f"xl: cannot attach to the console at {rundir}/none: No such file or directory\n"
    assert xl("console", "gpv") == (1, "", lost)
    assert xl("create", "-cq", cfg) == (1, "", lost)
    assert host.domains[4]["paused"] is False
