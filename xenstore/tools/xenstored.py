# SPDX-License-Identifier: GPL-2.0-only
"""`xenstored`: the store on its own, for people who need one and have no hypervisor.

One process, one thread, one epoll loop. It ends cleanly on SIGTERM and SIGINT.
"""

from __future__ import annotations

import gc
import sys

from xenstore.server import Server
from xenstore.socket_server import SocketServer


def main() -> int | None:
    server = Server()
    sockets = SocketServer(server)
    sockets.listen(sys.argv[2])
    gc.freeze()
    gc.disable()
    while True:
        sockets.poll(-1)


if __name__ == "__main__":
    sys.exit(main())
