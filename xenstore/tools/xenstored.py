# SPDX-License-Identifier: GPL-2.0-only
"""`xenstored`: the store on its own, for people who need one and have no hypervisor.

One process, one thread, one epoll loop; it ends cleanly on SIGTERM and SIGINT. With --journal it survives
being killed at any moment; with --state it keeps the tree over an orderly restart in Xen's migration format.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable

from xenstore.journal import Journal, JournalError
from xenstore.migration import StreamError, dump, restore
from xenstore.quota import ALIASES, ALL, NODE_PERMISSIONS, NODE_SIZE, NODES, PATH_MAX, TRANSACTIONS, WATCHES
from xenstore.server import Server
from xenstore.socket_server import SocketServer
from xenstore.transports import default_path

log = logging.getLogger("xenstore")


class StartError(Exception):
    """The daemon cannot start; the message says why."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="xenstored", description="The XenStore daemon, without a hypervisor.")
    parser.add_argument("-N", "--no-fork", action="store_true", help="stay in the foreground")
    parser.add_argument("-F", "--pid-file", metavar="FILE", help="write the process id there")
    parser.add_argument("-T", "--trace-file", metavar="FILE", help="log there instead of to stderr")
    parser.add_argument("--socket", metavar="PATH", default=default_path(), help="where to listen (%(default)s)")
    parser.add_argument("--journal", metavar="FILE", help="write every change there before it is acknowledged")
    parser.add_argument("--journal-sync", action="store_true", help="also survive a power loss (slower)")
    parser.add_argument("--state", metavar="FILE", help="restore the store from there, and dump it there at the end")
    limits = parser.add_argument_group("limits for unprivileged domains; 0 means none")
    for letter, name, quota in (
        ("-E", "--entry-nb", NODES),
        ("-S", "--entry-size", NODE_SIZE),
        ("-W", "--watch-nb", WATCHES),
        ("-t", "--transaction", TRANSACTIONS),
        ("-A", "--perm-nb", NODE_PERMISSIONS),
        ("-M", "--path-max", PATH_MAX),
    ):
        limits.add_argument(letter, name, metavar="N", type=int, dest=quota.name, help=quota.about)
    limits.add_argument("-Q", "--quota", metavar="NAME=N", action="append", default=[], help="any of them by name")
    return parser.parse_args()


def make_server(options: argparse.Namespace) -> Server:
    """The store as the command line wants it, with what it held when it last ran."""
    server = Server()
    limits = server.accounts.limits
    for quota in ALL.values():
        value = getattr(options, quota.name, None)
        if value is not None:
            limits[quota.name] = value
    for text in options.quota:
        name, _, number = text.partition("=")
        name = ALIASES.get(name, name)
        if name not in limits or not number.isdigit():
            raise StartError(f"--quota {text}: expected NAME=N, with one of {', '.join(ALL)}")
        limits[name] = int(number)
    if options.state is not None and os.path.exists(options.state):
        try:
            with open(options.state, "rb") as file:
                restore(server, file.read())
        except (OSError, StreamError) as error:
            raise StartError(f"--state {options.state}: {error}") from error
    if options.journal is not None:
        try:
            journal = Journal(options.journal, options.journal_sync)
            journal.load(server.tree)
        except (OSError, JournalError) as error:
            raise StartError(f"--journal {options.journal}: {error}") from error
        server.use_journal(journal)
    return server


def save_state(server: Server, path: str) -> None:
    temporary = f"{path}.new"
    with open(temporary, "wb") as file:
        file.write(dump(server))
    os.replace(temporary, path)


def serve(sockets: SocketServer) -> None:
    """Until SIGTERM or SIGINT."""
    stopping = False

    def stop(number: int, frame: object) -> None:
        nonlocal stopping
        stopping = True

    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    sockets.wake_on(reader)
    # Nothing here makes reference cycles; scanning a hundred thousand nodes for them would only cost time.
    gc.freeze()
    gc.disable()
    while not stopping:
        sockets.poll(-1)


def daemonize() -> Callable[[], None]:
    """Go to the background; the caller's process ends when the returned function says that all is well."""
    reader, writer = os.pipe()
    if os.fork():
        os.close(writer)
        os._exit(0 if os.read(reader, 1) else 1)
    os.close(reader)
    os.setsid()

    def background() -> None:
        null = os.open(os.devnull, os.O_RDWR)
        for fd in range(3):
            os.dup2(null, fd)
        os.write(writer, b"+")
        os.close(writer)

    return background


def main() -> int | None:
    options = arguments()
    logging.basicConfig(
        filename=options.trace_file, format="%(asctime)s xenstored: %(message)s", level=logging.INFO
    )
    ready = None if options.no_fork else daemonize()
    try:
        server = make_server(options)
        sockets = SocketServer(server)
        try:
            sockets.listen(options.socket)
        except OSError as error:
            raise StartError(f"cannot listen at {options.socket}: {error}") from error
        if options.pid_file is not None:
            with open(options.pid_file, "w") as file:
                file.write(f"{os.getpid()}\n")
    except (StartError, OSError) as error:
        print(f"xenstored: {error}", file=sys.stderr)
        return 1
    if ready is not None:
        ready()
    try:
        serve(sockets)
    finally:
        sockets.close()
        if options.pid_file is not None:
            with contextlib.suppress(OSError):
                os.unlink(options.pid_file)
    if options.state is not None:
        save_state(server, options.state)
    if server.journal is not None:
        server.journal.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
