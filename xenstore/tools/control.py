# SPDX-License-Identifier: GPL-2.0-only
"""`xenstore-control`: talk to the daemon itself; `xenstore-control stats` says who uses how much of the store."""

from __future__ import annotations

import os
import sys

from xenstore.client import Client
from xenstore.errors import ConnectionLost, InvalidRequest, XenstoreError


def main() -> int | None:
    argv0 = sys.argv[0] if os.path.basename(sys.argv[0]).startswith("xenstore-") else "xenstore-control"
    if len(sys.argv) < 2:
        sys.stderr.write(f"Usage:\n{argv0} <command> [<arg>...]\n")
        return 2
    try:
        client = Client()
    except ConnectionLost:
        sys.stderr.write("Failed to contact Xenstored.\n")
        return 1
    with client:
        try:
            text = client.control(*sys.argv[1:])
        except InvalidRequest:
            return _not_supported(client)
        except XenstoreError as error:
            sys.stderr.write(f"Error {error.errno} when trying to execute command.\n")
            return 3
        if text:
            print(text)
    return 0


def _not_supported(client: Client) -> int:
    try:
        sys.stderr.write(f"Command not supported. Valid commands are:\n{client.control('help')}\n")
    except XenstoreError:
        sys.stderr.write("Error when executing command.\n")
    return 3


if __name__ == "__main__":
    sys.exit(main())
