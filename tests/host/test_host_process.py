# SPDX-License-Identifier: GPL-2.0-only
"""The host as a process: start, stop, status, one a run directory, death and the tidying after it."""

import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dom0.xl.client import Client, NoHost
from tests.host.guests import PATIENCE, hello

ROOT = Path(__file__).resolve().parents[2]


class Host:
    """A run directory and the commands that are run in it."""

    def __init__(self, rundir: Path) -> None:
        self.rundir = rundir
        self.env = os.environ | {"XENPY_RUNDIR": str(rundir), "PYTHONPATH": str(ROOT)}

    def xen_py(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "dom0.host.main", *words]
        return subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=PATIENCE, check=False)

    def client(self) -> Client:
        return Client.connect(self.rundir, start=False)

    def pid(self) -> int:
        with self.client() as client:
            return int(client.call("host.hello")["pid"])

    def processes(self) -> list[int]:
        """The host's descendants."""
        found = [self.pid()]
        for pid in found:
            for task in Path(f"/proc/{pid}/task").iterdir():
                found += [int(word) for word in (task / "children").read_text().split()]
        return found[1:]


@pytest.fixture
def host() -> Iterator[Host]:
    with tempfile.TemporaryDirectory(prefix="xen-py-test-") as folder:
        host = Host(Path(folder))
        yield host
        host.xen_py("stop")


def ended(pids: list[int]) -> None:
    """Wait until all of them are gone."""
    for pid in pids:
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        assert select.select([fd], [], [], PATIENCE)[0], f"process {pid} lives on"
        os.close(fd)


def test_start_status_stop(host: Host) -> None:
    assert host.xen_py("status").returncode == 3
    assert host.xen_py("start").returncode == 0
    assert host.xen_py("start").returncode == 0
    pid = host.pid()
    status = host.xen_py("status")
    assert status.returncode == 0
    assert re.search(rf"host process {pid} .* 0 guests", status.stdout)
    assert os.getsid(pid) != os.getsid(0)
    with host.client() as client:
        assert client.call("domain.create", {"config": hello().to_plain()}) == {"domid": 1}
    assert "1 guest\n" in host.xen_py("status").stdout
    processes = [pid, *host.processes()]
    assert len(processes) == 3
    stopped = host.xen_py("stop")
    assert (stopped.returncode, stopped.stderr) == (0, "")
    ended(processes)
    assert sorted(path.name for path in host.rundir.iterdir()) == ["console", "host.lock", "log"]
    assert list((host.rundir / "console").iterdir()) == []
    assert host.xen_py("stop").returncode == 0
    assert "the host has ended" in (host.rundir / "log" / "host.log").read_text()


def test_run_in_the_foreground_until_a_signal(host: Host) -> None:
    command = [sys.executable, "-m", "dom0.host.main", "run"]
    with subprocess.Popen(command, env=host.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
        assert run.stdout is not None
        seen = ""
        while "serves" not in seen:
            line = run.stdout.readline()
            assert line, seen
            seen += line
        with host.client() as client:
            client.call("domain.create", {"config": hello().to_plain()})
        processes = host.processes()
        second = host.xen_py("run")
        assert second.returncode == 1
        assert f"a host (process {run.pid}) serves" in second.stderr
        run.send_signal(signal.SIGINT)
        seen += run.stdout.read()
        assert run.wait(PATIENCE) == 0
    assert "ending on SIGINT" in seen
    ended(processes)


def test_guests_die_with_a_killed_host_and_the_next_start_tidies_up(host: Host) -> None:
    assert host.xen_py("start").returncode == 0
    with host.client() as client:
        for name in ("one", "two"):
            client.call("domain.create", {"config": hello(name).to_plain()})
    pid, processes = host.pid(), host.processes()
    assert len(processes) == 3
    os.kill(pid, signal.SIGKILL)
    ended([pid, *processes])
    assert (host.rundir / "console" / "1.sock").exists()
    with pytest.raises(NoHost):
        host.client()
    assert host.xen_py("status").returncode == 3
    assert host.xen_py("start").returncode == 0
    assert list((host.rundir / "console").iterdir()) == []
    with host.client() as client:
        assert [row["domid"] for row in client.call("domain.list")] == [0]
        assert client.call("domain.create", {"config": hello("one").to_plain()}) == {"domid": 1}


def test_the_store_is_served(host: Host) -> None:
    assert host.xen_py("start").returncode == 0
    command = [sys.executable, "-m", "xenstore.tools.read", "/local/domain/0/name"]
    env = host.env | {"XENSTORED_PATH": str(host.rundir / "xenstored.sock")}
    read = subprocess.run(command, env=env, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert read.stdout == "Domain-0\n"


def test_two_starts_at_once_make_one_host(host: Host) -> None:
    command = [sys.executable, "-m", "dom0.host.main", "start"]
    starts = [subprocess.Popen(command, env=host.env, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    assert [start.wait(PATIENCE) for start in starts] == [0, 0, 0], [start.communicate()[1] for start in starts]
    for start in starts:
        start.communicate()
    assert (host.rundir / "host.lock").read_text() == f"{host.pid()}\n"


def test_a_run_directory_that_cannot_be_used(host: Host) -> None:
    host.rundir.chmod(0o755)
    start = host.xen_py("start")
    assert start.returncode == 1
    assert start.stderr.startswith("xen-py: run directory")
    host.rundir.chmod(0o700)


def test_a_stale_socket_is_no_host(host: Host) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(host.rundir / "control.sock"))
    assert host.xen_py("status").returncode == 3
    assert host.xen_py("start").returncode == 0
