# SPDX-License-Identifier: GPL-2.0-only
"""A vif on a Linux bridge: a TAP device of the machine's, as Xen's vif-bridge script would set it up.

For cards with `script=vif-bridge`: needs the right to administer the network, and a bridge that somebody has made. The
device is named vifD.N (or `vifname=`), has the bridge's side of the wire (fe:ff:ff:ff:ff:ff, no IPv6 of its own), and
has a carrier while the guest's card is connected. It goes with its descriptor, so it never outlives the host.

Between it and the vif is a switch of two ports, so filters, counters and captures are those of any other card. Segments
and blank checksums pass whole: the kernel says and is told of them in a header before each frame (virtio's).

Owner: the trio thread. Sources: linux/if_tun.h, linux/virtio_net.h, linux/sockios.h; tools/hotplug/Linux/vif-bridge.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import trio

from dom0.backend.net.switch import LONGEST_FRAME, SHORTEST_FRAME, Switch
from xen_py.drive.half import DeviceFailed
from xen_py.io.netif import GsoType
from xen_py.io.packet import (
    CHECKSUM_AT,
    Csum,
    Packet,
    headers,
    internet_sum,
    pseudo_header_sum,
    segment_header,
)

_TUN = "/dev/net/tun"
_SET_IFF, _SET_OFFLOAD, _SET_HEADER_SIZE, _SET_CARRIER = 0x400454CA, 0x400454D0, 0x400454D8, 0x400454E2
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR, _IFF_TUN_EXCL = 0x0002, 0x1000, 0x4000, 0x8000
_CAN_CSUM, _CAN_TSO4, _CAN_TSO6 = 1, 2, 4
_GET_FLAGS, _SET_FLAGS, _SET_MTU, _SET_ADDRESS, _GET_INDEX, _ADD_TO_BRIDGE = (
    0x8913, 0x8914, 0x8922, 0x8924, 0x8933, 0x89A2,
)  # fmt: skip
_IFF_UP, _ARPHRD_ETHER = 1, 1
_LONGEST_NAME = 15
_THEIR_ADDRESS = b"\xfe" + b"\xff" * 5
_HEADER = struct.Struct("=BBHHHH")
"""virtio_net_hdr: flags, kind of segments, bytes of headers, bytes of a segment, checksum's start and offset."""
_NEEDS_CSUM, _CSUM_VALID = 1, 2
_KINDS = {GsoType.NONE: 0, GsoType.TCPV4: 1, GsoType.TCPV6: 4}
_GSO = {number: kind for kind, number in _KINDS.items()}
_ECN = 0x80
_MOST_IN_A_ROW = 64
_WORDS = {
    errno.EPERM: "that needs root",
    errno.EACCES: "that needs root",
    errno.ENODEV: "there is no such device",
    errno.ENOENT: "there is no such device",
    errno.EOPNOTSUPP: "it is not a Linux bridge",
    errno.EBUSY: "the name is taken",
}


class TapFailed(Exception):
    """The device cannot be had; the text says why."""


class Tap:
    """One device; made by `open_tap`. `switch` is between it and the vif."""

    def __init__(self, fd: int, name: str, switch: Switch) -> None:
        self._fd = fd
        self.name = name
        self.switch = switch
        self._port = switch.plug("tap", self._deliver)
        self._serving: trio.CancelScope | None = None
        self._counts: Counter[str] = Counter()

    def _deliver(self, packet: Packet) -> bool:
        """From the guest to the machine."""
        header = _described(packet)
        if header is None:
            return False
        try:
            os.writev(self._fd, header)
        except OSError as error:  # nobody there takes frames: the device is down, or its queue is full
            self._counts[f"lost_{errno.errorcode.get(error.errno or 0, 'other').lower()}"] += 1
            return False
        return True

    def plug_in(self) -> None:
        """The guest's card is connected: the device has a carrier, and `serve` is called."""
        self._serving = trio.CancelScope()
        self._set_carrier(True)

    async def serve(self) -> None:
        """The device's frames go to the guest, until `stop`. DeviceFailed when somebody has taken it away."""
        assert self._serving is not None
        with self._serving:
            while True:
                await trio.lowlevel.wait_readable(self._fd)
                try:
                    for _ in range(_MOST_IN_A_ROW):
                        self._pass_on(os.read(self._fd, _HEADER.size + LONGEST_FRAME))
                except BlockingIOError:
                    pass
                except OSError as error:
                    raise DeviceFailed(f"{self.name} is gone: {error.strerror}") from error

    def _pass_on(self, block: bytes) -> None:
        packet = _understood(block)
        if packet is None:
            self._counts["not_understood"] += 1
        else:
            self._port.send(packet)

    def stop(self) -> None:
        """No more frames, and no carrier. Idempotent."""
        if self._serving is not None:
            self._serving.cancel()
            self._serving = None
            self._set_carrier(False)

    def _set_carrier(self, there: bool) -> None:
        with suppress(OSError):  # of a device that somebody has taken away
            fcntl.ioctl(self._fd, _SET_CARRIER, struct.pack("=i", there))

    def close(self) -> None:
        """The device goes."""
        self.stop()
        self._port.unplug()
        os.close(self._fd)

    def statistics(self) -> dict[str, Any]:
        return {"name": self.name, **self._port.statistics(), **self._counts}


def open_tap(name: str, bridge: str, mtu: int, switch: Switch) -> Tap:
    """A new device of that name, on that Linux bridge, up and without a carrier. TapFailed."""
    if len(name) > _LONGEST_NAME or len(bridge) > _LONGEST_NAME:
        raise TapFailed(f"{name if len(name) > _LONGEST_NAME else bridge}: a name has at most {_LONGEST_NAME} letters")
    what = bridge
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:

        def ask(request: int, device: str, rest: bytes = b"") -> bytes:
            return fcntl.ioctl(control, request, struct.pack("=16s24s", device.encode(), rest))[16:]

        fd = -1
        try:
            ask(_GET_INDEX, bridge)
            what = _TUN
            fd = os.open(_TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            what = name
            flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR | _IFF_TUN_EXCL
            fcntl.ioctl(fd, _SET_IFF, struct.pack("=16sH22x", name.encode(), flags))
            fcntl.ioctl(fd, _SET_HEADER_SIZE, struct.pack("=i", _HEADER.size))
            fcntl.ioctl(fd, _SET_OFFLOAD, _CAN_CSUM | _CAN_TSO4 | _CAN_TSO6)
            fcntl.ioctl(fd, _SET_CARRIER, struct.pack("=i", 0))
            ask(_SET_MTU, name, struct.pack("=i", mtu))
            ask(_SET_ADDRESS, name, struct.pack("=H", _ARPHRD_ETHER) + _THEIR_ADDRESS)
            _have_no_ipv6(name)
            index = ask(_GET_INDEX, name)
            what = bridge
            ask(_ADD_TO_BRIDGE, bridge, index)
            what = name
            (now,) = struct.unpack_from("=H", ask(_GET_FLAGS, name))
            ask(_SET_FLAGS, name, struct.pack("=H", now | _IFF_UP))
        except OSError as error:
            if fd >= 0:
                os.close(fd)
            raise TapFailed(f"{what}: {_WORDS.get(error.errno or 0) or error.strerror}") from error
    return Tap(fd, name, switch)


def _have_no_ipv6(name: str) -> None:
    setting = Path("/proc/sys/net/ipv6/conf") / name / "disable_ipv6"
    if setting.exists():
        setting.write_text("1")


def _described(packet: Packet) -> tuple[bytes, bytes] | None:
    """The header that the kernel wants, and the frame; None where it is not what it says."""
    data = packet.data
    if packet.csum is not Csum.BLANK:
        return _HEADER.pack(_CSUM_VALID if packet.csum is Csum.VALID else 0, 0, 0, 0, 0, 0), data
    found = headers(data)
    front = segment_header(packet) if packet.gso is not GsoType.NONE else 0
    if found is None or found.protocol not in CHECKSUM_AT or front is None:
        return None
    offset = CHECKSUM_AT[found.protocol]
    at = found.transport + offset
    if at + 2 > found.end:
        return None
    data = data[:at] + pseudo_header_sum(data, found).to_bytes(2, "big") + data[at + 2 :]
    size = packet.gso_size if front else 0
    return _HEADER.pack(_NEEDS_CSUM, _KINDS[packet.gso], front, size, found.transport, offset), data


def _understood(block: bytes) -> Packet | None:
    """The frame behind a header of the kernel's."""
    if len(block) < _HEADER.size + SHORTEST_FRAME:
        return None
    flags, kind, _, size, start, offset = _HEADER.unpack_from(block)
    data = block[_HEADER.size :]
    gso = _GSO.get(kind & ~_ECN)
    if gso is None:
        return None
    if gso is not GsoType.NONE:
        return Packet(data, Csum.BLANK, gso, size)
    if not flags & _NEEDS_CSUM:
        return Packet(data, Csum.VALID if flags & _CSUM_VALID else Csum.UNKNOWN)
    found = headers(data)
    if found is not None and found.transport == start and CHECKSUM_AT.get(found.protocol) == offset:
        return Packet(data, Csum.BLANK)
    at = start + offset  # of something that netif has no word for
    if at + 2 > len(data):
        return None
    value = 0xFFFF - internet_sum(data[start:])
    return Packet(data[:at] + value.to_bytes(2, "big") + data[at + 2 :], Csum.VALID)
