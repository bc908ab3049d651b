# SPDX-License-Identifier: GPL-2.0-only
"""The message half of the link between the host and a domain's loop: msgpack lists over a SEQPACKET socket.

Everything rare goes this way (binding a port, pausing, the end); notifications go through the doorbell page. The
domain's loop asks one thing at a time and waits for the answer. The host has orders answered, and serves the loop
meanwhile.

    loop to host                              host to loop
    ["call", method, args]                    ["answer", result] or ["failed", errno, why]
    ["console", bytes]  console_io output     ["pause", n]
    ["log", text]       a hypervisor message  ["unpause", n]
    ["trace", lost, [record, ...]]            ["trace", n, on]  record hypercalls (`xen_py.trace`) or stop
    ["over", reason, why]  the domain ended   ["pin", n, [[ref, readonly], ...]]
    ["broken", text]    the loop itself failed    -> for each a frame index or a negative grant status
                                              ["unpin", n, [[ref, readonly], ...], [written frame index, ...]]
    ["done", n, result] for each order        ["grants", n]  -> who uses which grants (`GrantTable.usage`)
                                              for another guest, named by `user`; each -> a status, negative if refused
                                              ["map", n, user, ref, flags]  -> or a frame index
                                              ["unmap", n, user, ref, flags]  -> None
                                              ["read", n, user, ref, offset, length]  -> or the bytes
                                              ["write", n, user, ref, offset, bytes]
                                              ["copy_in", n, [[ref, offset, bytes], ...]]
                                                -> for each a grant status

The loop asks about grants of other guests by calls "others_map", "others_unmap", "others_read", "others_write" with
owner in place of user, and "others_memory" with owner alone, whose answer is the number of frames and comes with the
owner's memory file as a descriptor. While the loop waits for any answer it carries out orders about its own grants.

The host takes every message as hostile: `parse` refuses what is not a list that starts with a string, the server
checks the rest.
"""

from __future__ import annotations

from typing import Any

import msgpack  # type: ignore[import-untyped]

LONGEST = 128 * 1024
"""Bytes in one message."""


class BadMessage(Exception):
    """The other end sent what no correct one sends."""


def pack(*parts: object) -> bytes:
    return msgpack.packb(parts, use_bin_type=True)  # type: ignore[no-any-return]


def parse(data: bytes) -> list[Any]:
    try:
        message = msgpack.unpackb(data, raw=False)
    except ValueError as error:
        raise BadMessage(f"a message that is not msgpack: {error}") from error
    if not isinstance(message, list) or not message or not isinstance(message[0], str):
        raise BadMessage("a message that is not a list with a name first")
    return message
