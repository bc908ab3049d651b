# SPDX-License-Identifier: GPL-2.0-only
"""The process that is a bridge's way to the world: libslirp, a network stack without privileges, around one socket.

Started by `dom0.backend.net.world` as `python -m dom0.backend.net.slirp FD PARENT PADDING`. What a guest sends to
others than guests arrives on the socket (SEQPACKET), a frame a message; TCP connections, datagrams and pings in it
become sockets of this process, and what comes back becomes frames. The first byte of a message says what it is:

    host to us                                us to host
    F frame                                   F frame
    + msgpack [number, udp, host address,     = msgpack [number, error text or ""]
      host port, guest address, guest port]
    - msgpack [udp, host address, host port]

Both addresses of a forwarded port are of one version of IP.

The process dies with the host. It can make Internet sockets and read files, and nothing else. libslirp is loaded when
it is there (Debian package libslirp0, 4.7 or later) and called by its C interface; the loop that frames and polling
go through is C, too (engine/native/slirp.c).
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from ipaddress import ip_address
from typing import Any

import msgpack  # type: ignore[import-untyped]

from dom0.host import sandbox
from xen_py.doorbell import open_native

LIBRARY = "libslirp.so.0"
MISSING = 77
"""Exit status: there is no libslirp."""
LONGEST = 1 << 17
_TITLE = "xen-py: network"
_CONFIG_VERSION = 4
_DATAGRAMS, _ONLY_IPV6 = 1, 2
"""Of a forwarded port. The second is without effect on IPv4."""

_ffi, _loop = open_native("""
    typedef struct Slirp Slirp;
    struct in_addr { uint32_t s_addr; };
    struct in6_addr { uint32_t words[4]; };
    typedef struct {
        uint32_t version;
        int restricted;
        bool in_enabled;
        struct in_addr vnetwork, vnetmask, vhost;
        bool in6_enabled;
        struct in6_addr vprefix_addr6;
        uint8_t vprefix_len;
        struct in6_addr vhost6;
        const char *vhostname, *tftp_server_name, *tftp_path, *bootfile;
        struct in_addr vdhcp_start, vnameserver;
        struct in6_addr vnameserver6;
        const char **vdnssearch;
        const char *vdomainname;
        size_t if_mtu, if_mru;
        bool disable_host_loopback, enable_emu;
        void *outbound_addr, *outbound_addr6;
        bool disable_dns, disable_dhcp;
    } SlirpConfig;
    Slirp *slirp_new(const SlirpConfig *cfg, const void *callbacks, void *opaque);
    void slirp_pollfds_fill(void);
    void slirp_pollfds_poll(void);
    void slirp_input(void);
    int slirp_add_hostxfwd(Slirp *, const char *host, uint32_t size, const char *guest, uint32_t guest_size, int flags);
    int slirp_remove_hostxfwd(Slirp *, const char *host, uint32_t size, int flags);

    struct xenpy_slirp *xenpy_slirp_open(int link, void *fill, void *poll, void *input);
    void *xenpy_slirp_callbacks(struct xenpy_slirp *s);
    int xenpy_slirp_run(struct xenpy_slirp *s, void *slirp);
    const uint8_t *xenpy_slirp_received(const struct xenpy_slirp *s);
    void xenpy_slirp_send(struct xenpy_slirp *s, const char *data, size_t size);
""")
# libslirp's, and those of slirp.c, which calls what is here without its arguments.


class Stack:
    """libslirp, and the loop around it. There is one for the whole of the process's life."""

    def __init__(self, library: Any, link: socket.socket, settings: dict[str, Any]) -> None:
        self._library = library
        functions = (library.slirp_pollfds_fill, library.slirp_pollfds_poll, library.slirp_input)
        self._loop = _loop.xenpy_slirp_open(link.fileno(), *(_ffi.cast("void *", each) for each in functions))
        self._config = _config(settings)
        self._slirp = library.slirp_new(self._config, _loop.xenpy_slirp_callbacks(self._loop), self._loop)

    def run(self) -> None:
        """Until the host has gone."""
        received = _loop.xenpy_slirp_received(self._loop)
        while (size := _loop.xenpy_slirp_run(self._loop, self._slirp)) > 0:
            self._serve(_ffi.buffer(received, size)[:])

    def _serve(self, message: bytes) -> None:
        kind, words = message[:1], msgpack.unpackb(message[1:])
        if kind == b"+":
            self._forward(*words)
        else:
            udp, host, port = words
            place = _place(host, port)
            self._library.slirp_remove_hostxfwd(self._slirp, place, len(place), _forward_flags(udp))

    def _forward(self, number: int, udp: bool, host: str, host_port: int, guest: str, port: int) -> None:
        _ffi.errno = 0
        places = _place(host, host_port), _place(guest, port)
        lengths = [len(place) for place in places]
        failed = self._library.slirp_add_hostxfwd(
            self._slirp, places[0], lengths[0], places[1], lengths[1], _forward_flags(udp)
        )
        reason = (os.strerror(_ffi.errno) if _ffi.errno else "refused") if failed else ""
        answer = b"=" + msgpack.packb([number, reason])
        _loop.xenpy_slirp_send(self._loop, answer, len(answer))


def _config(settings: dict[str, Any]) -> Any:
    config: Any = _ffi.new("SlirpConfig *")
    config.version = _CONFIG_VERSION
    config.in_enabled = config.in6_enabled = True
    config.vnetwork.s_addr = _address(settings["network"])
    config.vnetmask.s_addr = _address(settings["netmask"])
    config.vhost.s_addr = _address(settings["gateway"])
    config.vnameserver.s_addr = _address(settings["dns"])
    config.vdhcp_start.s_addr = _address(settings["first"])
    config.vprefix_addr6.words = _words(settings["network6"])
    config.vprefix_len = 64
    config.vhost6.words = _words(settings["gateway6"])
    config.vnameserver6.words = _words(settings["dns6"])
    config.if_mtu = config.if_mru = settings["mtu"]
    config.disable_dhcp = True  # the host's side answers (dom0.backend.net.dhcp)
    return config


def _address(text: str) -> int:
    """As libslirp has it: in network order, whatever the machine's."""
    return int.from_bytes(ip_address(text).packed, sys.byteorder)


def _place(address: str, port: int) -> bytes:
    """A `struct sockaddr_in` or `sockaddr_in6`."""
    packed = ip_address(address).packed
    if len(packed) == 4:
        return struct.pack("=H", socket.AF_INET) + port.to_bytes(2, "big") + packed + bytes(8)
    return struct.pack("=H", socket.AF_INET6) + port.to_bytes(2, "big") + bytes(4) + packed + bytes(4)


def _forward_flags(udp: bool) -> int:
    return _ONLY_IPV6 | (_DATAGRAMS if udp else 0)


def _words(text: str) -> list[int]:
    packed = ip_address(text).packed
    return [int.from_bytes(packed[at : at + 4], sys.byteorder) for at in range(0, 16, 4)]


def main(arguments: list[str]) -> None:
    link = socket.socket(fileno=int(arguments[0]))
    sandbox.die_with_parent(int(arguments[1]))
    sandbox.set_title(_TITLE)
    settings = msgpack.unpackb(link.recv(LONGEST))
    try:
        library = _ffi.dlopen(LIBRARY)
    except OSError:
        raise SystemExit(MISSING) from None
    sandbox.confine_network()
    Stack(library, link, settings).run()


if __name__ == "__main__":
    main(sys.argv[1:])
