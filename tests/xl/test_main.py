# SPDX-License-Identifier: GPL-2.0-only
"""xl's own part: global flags, finding the command, help, and how errors become words and exit statuses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dom0.xl.commands import TABLE, lookup
from tests.xl.conftest import Xl
from tests.xl.fake_host import FakeHost, Refused


def test_every_command_of_xl_is_known() -> None:
    assert len(TABLE) == 98  # cmd_table has 97, one of them for Arm only; `trace` and `netcap` are ours
    assert len({spec.name for spec in TABLE}) == 98
    assert sum(spec.can_dry_run for spec in TABLE) == 12
    assert [spec.name for spec in TABLE if spec.run] == [
        "create", "list", "destroy", "shutdown", "reboot", "pause", "unpause", "console", "cd-insert", "cd-eject",
        "vcpu-list", "vm-list", "info", "domid", "domname", "rename", "debug-keys", "dmesg", "netcap", "trace",
        "network-attach", "network-list", "network-detach", "block-attach", "block-list", "block-detach",
        "uptime",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("list", "list"),
        ("li", "list"),
        ("cr", "create"),
        ("des", "destroy"),
        ("unp", "unpause"),
        ("sched-credit", "sched-credit"),
        ("shut", "shutdown"),
        ("dom", None),
        ("p", None),
        ("", None),
        ("lists", None),
        ("help", None),
    ],
)
def test_unambiguous_beginnings_are_enough(word: str, name: str | None) -> None:
    found = lookup(word)
    assert (found and found.name) == name


def test_help(xl: Xl) -> None:
    ran = xl("help")
    lines = ran.out.split("\n")
    assert (ran.status, ran.err) == (0, "")
    assert lines[:5] == [
        "Usage xl [-vfNtT] <subcommand> [args]",
        "",
        "xl full list of subcommands:",
        "",
        " create              Create a domain from config file <filename>",
    ]
    assert " vm-list             List guest domains, excluding dom0, stubdoms, etc." in lines
    long = lines.index(" pci-assignable-remove ")
    assert lines[long + 1].startswith("                     Take a PCI device")
    assert xl("help", "help").out == ran.out


def test_no_command_is_a_mistake(xl: Xl) -> None:
    assert xl()[:2] == (1, xl("help").out)


def test_help_of_a_command(xl: Xl) -> None:
    text = xl("help", "create").out
    assert text.startswith(
        "Usage: xl [-vtTfN] create <ConfigFile> [options] [vars]\n\nCreate a domain from config file <filename>.\n\n"
        "Options:\n\n-c                      Connect to the console after the domain is created.\n"
    )
    assert text.endswith("--ignore-global-affinity-masks Ignore global masks in xl.conf.\n")
    assert xl("create", "-h") == (0, text, "")
    assert xl("help", "dest").out.startswith("Usage: xl [-vtTf] destroy [options] <Domain>\n\nTerminate a domain")
    assert xl("help", "list").out.startswith("Usage: xl [-vtT] list [options] [Domain]\n\n")
    assert xl("help", "nosuch") == (0, 'command "nosuch" not implemented\n', "")


@pytest.mark.parametrize(
    ("words", "status", "err"),
    [
        (("-x", "list"), 1, "unknown global option\n"),
        (("nosuch",), 1, "command not implemented\n"),
        (("-N", "list"), 1, "command does not implement -N (dryrun) option\n"),
        (("migrate", "a", "b"), 1, "xl migrate: xen-py does not have this command yet\n"),
        (("-vvfT", "save"), 1, "xl save: xen-py does not have this command yet\n"),
        (("list", "-x"), 2, "option `x' not supported.\n"),
        (("list", "--nosuch"), 2, "option `--nosuch' not supported.\n"),
        (("console", "-e"), 2, "option `e' not supported.\n"),
    ],
)
def test_mistakes(xl: Xl, words: tuple[str, ...], status: int, err: str) -> None:
    assert xl(*words) == (status, "", err)


@pytest.mark.parametrize(("command", "required"), [("destroy", 1), ("pause", 1), ("domid", 1), ("rename", 2)])
def test_missing_arguments(xl: Xl, command: str, required: int) -> None:
    plural = "s" if required > 1 else ""
    assert xl(command) == (
        2,
        xl("help", command).out,
        f"'xl {command}' requires at least {required} argument{plural}.\n\n",
    )


def test_details_of_an_error_are_for_the_verbose(host: FakeHost, xl: Xl) -> None:
    host.refusals["domain.pause"] = Refused("it will not\x1b pause", 3, ("one", "two"))
    assert xl("pause", "gpv") == (3, "", "it will not? pause\n")
    assert xl("-v", "pause", "gpv") == (3, "", "it will not? pause\none\ntwo\n")
    stamped = xl("-T", "pause", "gpv").err
    assert stamped.endswith(f"[{os.getpid()}] it will not? pause\n")


def test_a_bad_run_directory_is_one_line(rundir: Path, xl: Xl) -> None:
    rundir.chmod(0o755)
    status, out, err = xl("list")
    assert (status, out) == (1, "")
    assert err == f"run directory {rundir} is open to others (mode 755); chmod 700 it\n"


def run_xl(*words: str, **options: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "dom0.xl.main", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def test_a_reader_that_leaves_is_no_traceback(host: FakeHost) -> None:
    host.info = {f"field{number}": "x" * 1000 for number in range(1000)}
    with run_xl("info") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_a_full_disk_is_one_line(host: FakeHost) -> None:
    with open("/dev/full", "wb") as full:
        ran = subprocess.run([sys.executable, "-m", "dom0.xl.main", "info"], stdout=full, stderr=subprocess.PIPE)
    assert (ran.returncode, ran.stderr) == (1, b"xl: [Errno 28] No space left on device\n")


def test_a_vanished_working_directory_is_one_line(host: FakeHost, tmp_path: Path) -> None:
    cfg = tmp_path / "guest.cfg"
    cfg.write_text("name='x'\nkernel='k'\n")
    (tmp_path / "gone").mkdir()
    script = f"cd {tmp_path}/gone && rmdir {tmp_path}/gone && exec {sys.executable} -m dom0.xl.main create -q {cfg}"
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    ran = subprocess.run(["sh", "-c", script], stderr=subprocess.PIPE, env=env)
    assert (ran.returncode, ran.stderr) == (1, b"xl: [Errno 2] No such file or directory\n")


def test_words_that_are_no_text_are_one_line(host: FakeHost, xl: Xl) -> None:
    assert xl("rename", "gpv", "\udcff") == (
        1, "", "xl: '\\udcff' is not UTF-8 text\nCan't rename domain 'gpv'.\n"
    )  # fmt: skip


def test_a_letter_the_locale_lacks(host: FakeHost) -> None:
    host.domains[3]["name"] = "\u732b"
    env = os.environ | {"PYTHONIOENCODING": "latin-1"}
    ran = subprocess.run([sys.executable, "-m", "dom0.xl.main", "domname", "3"], stdout=subprocess.PIPE, env=env)
    assert (ran.returncode, ran.stdout) == (0, b"\\u732b\n")


def test_interrupt_is_a_clean_end(host: FakeHost) -> None:
    with run_xl("shutdown", "-w", "gpv") as process:
        with host.changed:
            host.domain_shutdown = lambda domid, reason: None  # type: ignore[method-assign]
            assert host.changed.wait_for(
                lambda: ("domain.shutdown", {"domid": 3, "reason": "poweroff"}) in host.asked, 60
            )
        assert process.stderr is not None
        assert process.stderr.readline() == b"Shutting down domain 3\n"
        assert process.stderr.readline() == b"Waiting for 1 domains\n"
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == b""
    assert process.returncode == 130
