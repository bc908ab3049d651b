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
it is there (Debian package libslirp0, 4.7 or later) and called by its C interface.
"""

from __future__ import annotations

import heapq
import os
import select
import socket
import struct
import sys
import time
from collections import deque
from ipaddress import ip_address
from typing import Any

import msgpack  # type: ignore[import-untyped]
from cffi import FFI

from dom0.host import sandbox

LIBRARY = "libslirp.so.0"
MISSING = 77
"""Exit status: there is no libslirp."""
LONGEST = 1 << 17
_MOST_WAITING = 4096
"""Frames kept for a host that is slow to take them."""
_MOST_IN_A_ROW = 64
_TITLE = "xen-py: network"
_CONFIG_VERSION = 4
_DATAGRAMS, _ONLY_IPV6 = 1, 2
"""Of a forwarded port. The second is without effect on IPv4."""
_POLL = {1: select.POLLIN, 2: select.POLLOUT, 4: select.POLLPRI, 8: select.POLLERR, 16: select.POLLHUP}
_TO_POLL = [sum(flag for bit, flag in _POLL.items() if events & bit) for events in range(32)]
_FROM_POLL = [sum(bit for bit, flag in _POLL.items() if events & flag) for events in range(32)]
"""libslirp's bits as poll has them, and the reverse; both within 31."""

_ffi = FFI()
_ffi.cdef("""
    typedef struct Slirp Slirp;
    struct in_addr { uint32_t s_addr; };
    struct in6_addr { uint32_t words[4]; };
    typedef struct {
        ssize_t (*send_packet)(const void *buf, size_t len, void *opaque);
        void (*guest_error)(const char *msg, void *opaque);
        int64_t (*clock_get_ns)(void *opaque);
        void *(*timer_new)(void (*cb)(void *), void *cb_opaque, void *opaque);
        void (*timer_free)(void *timer, void *opaque);
        void (*timer_mod)(void *timer, int64_t expire_time, void *opaque);
        void (*register_poll_fd)(int fd, void *opaque);
        void (*unregister_poll_fd)(int fd, void *opaque);
        void (*notify)(void *opaque);
        void *init_completed;
        void *timer_new_opaque;
    } SlirpCb;
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
    Slirp *slirp_new(const SlirpConfig *cfg, const SlirpCb *callbacks, void *opaque);
    void slirp_pollfds_fill(Slirp *, uint32_t *timeout, int (*add)(int fd, int events, void *opaque), void *opaque);
    void slirp_pollfds_poll(Slirp *, int error, int (*get)(int idx, void *opaque), void *opaque);
    void slirp_input(Slirp *, const uint8_t *pkt, int pkt_len);
    int slirp_add_hostxfwd(Slirp *, const char *host, uint32_t size, const char *guest, uint32_t guest_size, int flags);
    int slirp_remove_hostxfwd(Slirp *, const char *host, uint32_t size, int flags);
""")


class Stack:
    """libslirp, with the clock, timers and polling it wants of its user."""

    def __init__(self, library: Any, link: socket.socket, settings: dict[str, Any]) -> None:
        self._library = library
        self._link = link
        self._waiting: deque[bytes] = deque()
        self._timers: dict[int, tuple[Any, Any]] = {}
        self._due: list[tuple[int, int]] = []
        self._expires: dict[int, int] = {}
        self._polled: list[tuple[int, int]] = []
        self._ready: dict[int, int] = {}
        self._keep: list[Any] = []
        self._slirp = library.slirp_new(self._config(settings), self._callbacks(), _ffi.NULL)
        self._add, self._get = self._poll_callbacks()

    # ---- what libslirp asks for ----

    def _config(self, settings: dict[str, Any]) -> Any:
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
        self._keep.append(config)
        return config

    def _callbacks(self) -> Any:
        def send_packet(data: Any, length: int, _opaque: Any) -> int:
            self.send(b"F" + _ffi.buffer(data, length)[:])
            return length

        def timer_new(callback: Any, opaque: Any, _opaque: Any) -> Any:
            number = len(self._timers) + 1
            self._timers[number] = callback, opaque
            return _ffi.cast("void *", number)

        def timer_mod(timer: Any, milliseconds: int, _opaque: Any) -> None:
            number = int(_ffi.cast("uintptr_t", timer))
            self._expires[number] = milliseconds
            heapq.heappush(self._due, (milliseconds, number))

        def timer_free(timer: Any, _opaque: Any) -> None:
            self._expires.pop(int(_ffi.cast("uintptr_t", timer)), None)

        table = {
            "send_packet": ("ssize_t(const void *, size_t, void *)", send_packet),
            "guest_error": ("void(const char *, void *)", lambda text, opaque: None),
            "clock_get_ns": ("int64_t(void *)", lambda opaque: time.monotonic_ns()),
            "timer_new": ("void *(void (*)(void *), void *, void *)", timer_new),
            "timer_free": ("void(void *, void *)", timer_free),
            "timer_mod": ("void(void *, int64_t, void *)", timer_mod),
            "register_poll_fd": ("void(int, void *)", lambda fd, opaque: None),
            "unregister_poll_fd": ("void(int, void *)", lambda fd, opaque: None),
            "notify": ("void(void *)", lambda opaque: None),
        }
        callback: Any = _ffi.callback
        callbacks = _ffi.new("SlirpCb *")
        for name, (kind, function) in table.items():
            made = callback(kind, function)
            self._keep.append(made)
            setattr(callbacks, name, made)
        self._keep.append(callbacks)
        return callbacks

    def _poll_callbacks(self) -> tuple[Any, Any]:
        def add(fd: int, events: int, _opaque: Any) -> int:
            self._polled.append((fd, _TO_POLL[events & 31]))
            return len(self._polled) - 1

        def get(index: int, _opaque: Any) -> int:
            return _FROM_POLL[self._ready.get(self._polled[index][0], 0) & 31]

        callback: Any = _ffi.callback
        made = callback("int(int, int, void *)", add), callback("int(int, void *)", get)
        self._keep += made
        return made

    # ---- the loop ----

    def run(self) -> None:
        """Until the host has gone."""
        link, poll = self._link.fileno(), select.poll()
        timeout = _ffi.new("uint32_t *")
        registered: dict[int, int] = {}
        while True:
            self._polled.clear()
            timeout[0] = 1000
            self._library.slirp_pollfds_fill(self._slirp, timeout, self._add, _ffi.NULL)
            wanted = {link: select.POLLIN | (select.POLLOUT if self._waiting else 0)}
            for fd, events in self._polled:
                wanted[fd] = wanted.get(fd, 0) | events
            if wanted != registered:
                for fd in registered.keys() - wanted.keys():
                    poll.unregister(fd)
                for fd, events in wanted.items():
                    poll.register(fd, events)
                registered = wanted
            self._ready = dict(poll.poll(min(timeout[0], self._until_due())))
            self._library.slirp_pollfds_poll(self._slirp, 0, self._get, _ffi.NULL)
            self._fire()
            happened = self._ready.get(link, 0)
            if happened & select.POLLOUT:
                self._flush()
            if happened & (select.POLLIN | select.POLLHUP) and not self._receive():
                return

    def _until_due(self) -> int:
        return max(0, self._due[0][0] - time.monotonic_ns() // 1_000_000) if self._due else 1000

    def _fire(self) -> None:
        now = time.monotonic_ns() // 1_000_000
        while self._due and self._due[0][0] <= now:
            when, number = heapq.heappop(self._due)
            if self._expires.get(number) == when:
                del self._expires[number]
                callback, opaque = self._timers[number]
                callback(opaque)

    def _receive(self) -> bool:
        """What the host has sent; False at its end."""
        for _ in range(_MOST_IN_A_ROW):
            try:
                message = self._link.recv(LONGEST, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return True
            except ConnectionError:
                return False
            if not message:
                return False
            kind, body = message[:1], message[1:]
            if kind == b"F":
                self._library.slirp_input(self._slirp, body, len(body))
            elif kind == b"+":
                self._forward(*msgpack.unpackb(body))
            else:
                udp, host, port = msgpack.unpackb(body)
                place = _place(host, port)
                self._library.slirp_remove_hostxfwd(self._slirp, place, len(place), _forward_flags(udp))
        return True

    def _forward(self, number: int, udp: bool, host: str, host_port: int, guest: str, port: int) -> None:
        _ffi.errno = 0
        places = _place(host, host_port), _place(guest, port)
        lengths = [len(place) for place in places]
        failed = self._library.slirp_add_hostxfwd(
            self._slirp, places[0], lengths[0], places[1], lengths[1], _forward_flags(udp)
        )
        reason = (os.strerror(_ffi.errno) if _ffi.errno else "refused") if failed else ""
        self.send(b"=" + msgpack.packb([number, reason]))

    def send(self, message: bytes) -> None:
        """To the host; frames that it does not take are lost, as on any wire."""
        if self._waiting:
            if len(self._waiting) < _MOST_WAITING or message[:1] != b"F":
                self._waiting.append(message)
            return
        try:
            self._link.send(message, socket.MSG_DONTWAIT)
        except BlockingIOError:
            self._waiting.append(message)
        except OSError:
            pass  # the host has gone; the loop finds out

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, deque()
        while waiting and not self._waiting:
            self.send(waiting.popleft())
        self._waiting += waiting


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
