# SPDX-License-Identifier: GPL-2.0-only
"""The warm template process: everything a VM needs is imported once, and each VM process is a fork of it.

A fork is only safe from a process with one thread, so the template is a process of its own, started by exec and not
by fork: the host's thread state cannot leak into it, whenever it is started. It does nothing but wait: for requests on
its socket (a SEQPACKET pair with descriptors riding along) and for its children's ends. It answers each request with
the child's pid and pidfd (made here, before the child could be reaped) and later reports how the child ended.

    host to template                          template to host
    {"spec": DomainSpec as plain} + 5 fds     ["started", pid] + pidfd,  or ["failed", text]
                                              ["ended", pid, status as waitstatus_to_exitcode gives it]

It dies with the host, and its children with it.
"""

from __future__ import annotations

import gc
import os
import select
import socket
import sys
from typing import NoReturn

from dom0.host import sandbox
from dom0.host.assembly import make_domain, warm_up
from dom0.host.messages import LONGEST, pack
from dom0.host.vmprocess import DESCRIPTORS, vm_process

_TITLE = "xen-py: template"


def main(arguments: list[str]) -> None:
    """`python -m dom0.host.template FD PARENT PADDING`."""
    control = socket.socket(fileno=int(arguments[0]))
    isolated = sandbox.isolate()
    sandbox.die_with_parent(int(arguments[1]))
    sandbox.set_title(_TITLE)
    warm_up()
    gc.collect()
    gc.freeze()
    control.send(pack("ready", isolated))
    _Template(control).run()


class _Template:
    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._children: dict[int, int] = {}
        """pid of each child by its pidfd."""

    def run(self) -> None:
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd in self._children:
                    poll.unregister(fd)
                    self._reap(fd)
                else:
                    pidfd = self._serve()
                    if pidfd is not None:
                        poll.register(pidfd, select.POLLIN)

    def _serve(self) -> int | None:
        """Answer one request; the pidfd of the new child."""
        request, fds, _, _ = socket.recv_fds(self._control, LONGEST, DESCRIPTORS)
        if not request:
            os._exit(0)  # the host is gone
        template = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            self._control.send(pack("failed", f"cannot fork a VM process: {error.strerror}"))
            _close(fds)
            return None
        if pid == 0:
            self._child(template, request, fds)
        _close(fds)
        pidfd = os.pidfd_open(pid)
        self._children[pidfd] = pid
        socket.send_fds(self._control, [pack("started", pid)], [pidfd])
        return pidfd

    def _child(self, template: int, request: bytes, fds: list[int]) -> NoReturn:
        status = 1
        try:
            sandbox.die_with_parent(template)
            self._control.close()
            _close(list(self._children))
            vm_process(request, fds, make_domain)
            status = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stderr.flush()
            os._exit(status)

    def _reap(self, pidfd: int) -> None:
        pid = self._children.pop(pidfd)
        _, status = os.waitpid(pid, 0)
        os.close(pidfd)
        self._control.send(pack("ended", pid, os.waitstatus_to_exitcode(status)))


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


if __name__ == "__main__":
    main(sys.argv[1:])
