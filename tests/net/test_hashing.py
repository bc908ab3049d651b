# SPDX-License-Identifier: GPL-2.0-only
"""The control ring: hashes as the known ones, requests that are carried out or refused, packets in the queue named."""

from __future__ import annotations

import random
import struct

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from dom0.backend.net.hashing import LARGEST_MAPPING, LONGEST_KEY, Hashing, toeplitz
from domU.frontend.net import ALL_HASHES, HashRefused, NetFrontend
from tests.net.frames import A, B, arp, frame, ip4, ip6, tcp, udp
from tests.net.guests import MAC, backend_of, lab
from xen_py.abi.grant_table import GrantStatus
from xen_py.io.netif import CtrlRequest, CtrlStatus, CtrlType, GsoType, HashAlgorithm, HashExtra, HashType
from xen_py.io.packet import Csum, Packet

KEY = bytes.fromhex("6d5a56da255b0ec24167253d43a38fb0d0ca2bcbae7b30b477cb2da38030f20c6a42b73bbeac01fa")
"""Of Microsoft's suite for receive-side scaling, as what follows."""
KNOWN = [
    ("66.9.149.187", 2794, "161.142.100.80", 1766, 0x323E8FC2, 0x51CCC178),
    ("199.92.111.2", 14230, "65.69.140.83", 4739, 0xD718262A, 0xC626B0EA),
    ("24.19.198.95", 12898, "12.22.207.184", 38024, 0xD2D0A5DE, 0x5C2B394A),
    ("38.27.205.30", 48228, "209.142.163.6", 2217, 0x82989176, 0xAFC7327F),
    ("153.39.163.191", 44251, "202.188.127.2", 1303, 0x5D1809C5, 0x10E828A2),
    ("3ffe:2501:200:1fff::7", 2794, "3ffe:2501:200:3::1", 1766, 0x2CC18CD5, 0x40207D3D),
    ("3ffe:501:8::260:97ff:fe40:efab", 14230, "ff02::1", 4739, 0x0F0C461C, 0xDDE51BBF),
    ("3ffe:1900:4545:3:200:f8ff:fe21:67cf", 44251, "fe80::200:f8ff:fe21:67cf", 38024, 0x4B61E985, 0x02D1FEEF),
]
PAGE_REF = 8


class Pages:
    """A guest with one granted page."""

    def __init__(self, page: bytes = b"") -> None:
        self.page = page.ljust(4096, b"\0")

    def copy_out(self, parts: list[tuple[int, int, int]]) -> list[bytes | GrantStatus]:
        return [
            self.page[start : start + size] if ref == PAGE_REF and start + size <= 4096 else GrantStatus.BAD_GNTREF
            for ref, start, size in parts
        ]


def ask(hashing: Hashing, kind: int, *data: int) -> tuple[int, int]:
    answer = hashing.answer(CtrlRequest(7, kind, *[*data, 0, 0, 0][:3]))
    assert answer[:2] == (7, kind)
    return answer.status, answer.data


def made(key: bytes = KEY, types: HashType = ALL_HASHES, mapping: tuple[int, ...] = (), queues: int = 4) -> Hashing:
    pages = Pages(key)
    hashing = Hashing(pages, queues)
    for request in (
        (CtrlType.SET_HASH_ALGORITHM, HashAlgorithm.TOEPLITZ),
        (CtrlType.SET_HASH_KEY, PAGE_REF, len(key)),
        (CtrlType.SET_HASH_FLAGS, types),
        (CtrlType.SET_HASH_MAPPING_SIZE, len(mapping)),
    ):
        assert ask(hashing, *request) == (CtrlStatus.SUCCESS, 0)
    pages.page = struct.pack(f"<{len(mapping)}I", *mapping)
    assert ask(hashing, CtrlType.SET_HASH_MAPPING, PAGE_REF, len(mapping)) == (CtrlStatus.SUCCESS, 0)
    return hashing


def between(known: tuple[str, int, str, int, int, int], body: bytes | None = None) -> bytes:
    source, from_port, target, to_port, *_ = known
    make = ip6 if ":" in source else ip4
    return make(B, A, source, target, 6, tcp(b"x", ports=(from_port, to_port)) if body is None else body)


@pytest.mark.parametrize("known", KNOWN, ids=str)
def test_known_hashes(known: tuple[str, int, str, int, int, int]) -> None:
    *_, plain, with_ports = known
    six = ":" in known[0]
    bit = 2 if six else 0
    both = (HashType.IPV6 | HashType.IPV6_TCP) if six else (HashType.IPV4 | HashType.IPV4_TCP)
    data = between(known)
    for types, expected in (
        (both, HashExtra(bit + 1, 1, with_ports.to_bytes(4, "little"))),
        (ALL_HASHES, HashExtra(bit + 1, 1, with_ports.to_bytes(4, "little"))),
        (HashType(1 << bit), HashExtra(bit, 1, plain.to_bytes(4, "little"))),
        (HashType(2 << bit), HashExtra(bit + 1, 1, with_ports.to_bytes(4, "little"))),
        (ALL_HASHES & ~both, None),
    ):
        hashing = made(types=types)
        assert hashing.of(data) == hashing.of(data) == expected
        for tagged in (b"\x81\x00\0\5", b"\x88\xa8\0\5\x81\x00\0\6"):
            assert hashing.of(data[:12] + tagged + data[12:]) == expected


def test_what_has_no_ports_to_hash() -> None:
    known = KNOWN[0]
    plain = HashExtra(0, 1, known[4].to_bytes(4, "little"))
    data = between(known)
    fragment = data[:20] + b"\x20\0" + data[22:]
    later = data[:20] + b"\0\5" + data[22:]
    datagram = ip4(B, A, known[0], known[2], 17, udp(b"x", (known[1], known[3])))
    for each in (fragment, later, datagram, between(known, b""), between(known, b"123")):
        assert made().of(each) == plain
        assert made(types=HashType.IPV4_TCP).of(each) is None
    known6 = KNOWN[5]
    body = tcp(b"x", ports=(known6[1], known6[3]))
    alone = ip6(B, A, known6[0], known6[2], 44, bytes([6, 0, 0, 0, 0, 0, 0, 1]) + body)
    assert made().of(alone) == HashExtra(2, 1, known6[4].to_bytes(4, "little"))
    behind = ip6(B, A, known6[0], known6[2], 60, bytes([6, 0]) + bytes(6) + body)
    assert made().of(behind) == HashExtra(3, 1, known6[5].to_bytes(4, "little"))
    for none in (arp(A, A, "10.0.0.1"), frame(B, A), data[:30], b""):
        assert made().of(none) is None


@given(st.binary(max_size=50), st.binary(max_size=50), st.binary(min_size=36, max_size=36))
def test_toeplitz_is_linear_and_a_short_key_ends_in_zeros(one: bytes, two: bytes, key: bytes) -> None:
    size = max(len(one), len(two))
    one, two = one.ljust(size, b"\0"), two.ljust(size, b"\0")
    both = bytes(a ^ b for a, b in zip(one, two, strict=True))
    assert toeplitz(key, one) ^ toeplitz(key, two) == toeplitz(key, both)
    assert toeplitz(key, one) == toeplitz(key + bytes(30), one)
    assert toeplitz(b"", one) == 0


def test_requests_that_are_refused() -> None:
    no = CtrlStatus.INVALID_PARAMETER
    hashing = Hashing(Pages(), 4)
    assert ask(hashing, CtrlType.GET_HASH_FLAGS) == (CtrlStatus.NOT_SUPPORTED, 0)
    assert ask(hashing, CtrlType.SET_HASH_FLAGS, ALL_HASHES) == (no, 0)
    assert ask(hashing, CtrlType.SET_HASH_ALGORITHM, 1) == (CtrlStatus.SUCCESS, 0)
    assert ask(hashing, CtrlType.GET_HASH_FLAGS) == (CtrlStatus.SUCCESS, 15)
    assert ask(hashing, CtrlType.GET_HASH_MAPPING_SIZE) == (CtrlStatus.SUCCESS, LARGEST_MAPPING)
    assert not hashing.wanted
    for kind, *data in (
        (CtrlType.SET_HASH_ALGORITHM, 2),
        (CtrlType.SET_HASH_ALGORITHM, 0xFFFFFFFF),
        (CtrlType.SET_HASH_FLAGS, 16),
        (CtrlType.SET_HASH_KEY, PAGE_REF, LONGEST_KEY + 1),
        (CtrlType.SET_HASH_KEY, PAGE_REF, 0xFFFFFFFF),
        (CtrlType.SET_HASH_KEY, PAGE_REF + 1, 1),
        (CtrlType.SET_HASH_MAPPING_SIZE, LARGEST_MAPPING + 1),
        (CtrlType.SET_HASH_MAPPING, PAGE_REF, 1, 0),
        (CtrlType.SET_HASH_MAPPING, PAGE_REF, 0xFFFFFFFF, 0),
        (CtrlType.SET_HASH_MAPPING, PAGE_REF, 0, 0xFFFFFFFF),
    ):
        assert ask(hashing, kind, *data) == (no, 0), (kind, data)
    for kind in (0, 8, 9, 10, 0xFFFF):
        assert ask(hashing, kind) == (CtrlStatus.NOT_SUPPORTED, 0)
    assert ask(hashing, CtrlType.SET_HASH_KEY, 0xFFFFFFFF, 0) == (CtrlStatus.SUCCESS, 0)
    assert hashing.statistics()["refused"] == 17


def test_a_mapping_in_parts() -> None:
    pages = Pages(struct.pack("<4I", 3, 2, 1, 0))
    hashing = Hashing(pages, 4)
    ok, no = (CtrlStatus.SUCCESS, 0), (CtrlStatus.INVALID_PARAMETER, 0)
    assert ask(hashing, CtrlType.SET_HASH_MAPPING_SIZE, 6) == ok
    assert ask(hashing, CtrlType.SET_HASH_MAPPING, PAGE_REF, 4, 2) == ok
    assert ask(hashing, CtrlType.SET_HASH_MAPPING, PAGE_REF, 4, 3) == no
    pages.page = struct.pack("<4I", 1, 4, 1, 1)
    assert ask(hashing, CtrlType.SET_HASH_MAPPING, PAGE_REF, 4, 0) == no
    assert ask(hashing, CtrlType.SET_HASH_MAPPING, PAGE_REF, 1, 0) == ok
    assert hashing.statistics()["mapping"] == [1, 0, 3, 2, 1, 0]
    assert ask(hashing, CtrlType.SET_HASH_MAPPING_SIZE, 2) == ok
    assert hashing.statistics()["mapping"] == [0, 0]


WORD = st.one_of(st.integers(0, 140), st.sampled_from([PAGE_REF, 0xFFFFFFFF]), st.integers(0, 0xFFFFFFFF))


@given(st.lists(st.tuples(st.integers(0, 11), WORD, WORD, WORD), max_size=40), st.binary(max_size=80))
def test_whatever_is_asked_packets_have_a_queue(requests: list[tuple[int, int, int, int]], page: bytes) -> None:
    hashing = Hashing(Pages(page), 3)
    ask(hashing, CtrlType.SET_HASH_ALGORITHM, 1)
    for request in requests:
        assert ask(hashing, *request)[0] in (0, 1, 2)
        for data in (between(KNOWN[0]), between(KNOWN[5]), frame(B, A), page):
            assert 0 <= hashing.queue(hashing.of(data)) < 3


class Steered(NetFrontend):
    queues = 4
    hashing = True
    offloads = True


async def test_packets_come_in_the_queue_that_the_table_names() -> None:
    async with (
        lab(f"mac={MAC}1", f"mac={MAC}2") as (machine, (one, two)),
        one.device(NetFrontend) as sender,
        two.device(Steered) as card,
    ):
        mapping = [2, 0, 3, 1, 1, 2, 0, 0]
        await card.steer(KEY, mapping)
        expected = [0] * 4
        for known in KNOWN:
            await sender.send(between(known))
            found = (await card.receive()).hash
            assert found == HashExtra(3 if ":" in known[0] else 1, 1, known[5].to_bytes(4, "little"))
            expected[mapping[known[5] % len(mapping)]] += 1
        assert card.statistics()["received"] == expected
        await sender.send(frame(B, A))  # nothing to hash: as if it were zero
        assert (await card.receive()).hash is None
        expected[mapping[0]] += 1
        data = ip4(B, A, KNOWN[0][0], KNOWN[0][2], 6, tcp(bytes(60000), ports=(KNOWN[0][1], KNOWN[0][3])))
        large = Packet(data, Csum.BLANK, GsoType.TCPV4, 1400)
        value = HashExtra(1, 1, KNOWN[0][5].to_bytes(4, "little"))
        port = backend_of(machine, one).port
        assert port is not None
        port.send(large)
        assert await card.receive() == large._replace(hash=value)
        expected[mapping[KNOWN[0][5] % len(mapping)]] += 1
        assert card.statistics()["received"] == expected
        assert backend_of(machine, two).statistics()["hashing"]["hashed"] == 9
        await card.leave_steering()
        await sender.send(between(KNOWN[0]))
        assert (await card.receive()).hash is None
        for bad in ([4], [0] * 129):
            with pytest.raises(HashRefused, match="status 2"):
                await card.steer(KEY, bad)


async def test_a_card_without_a_control_ring_and_one_that_comes_again() -> None:
    async with lab(f"mac={MAC}1", f"mac={MAC}2") as (machine, (one, two)), one.device(NetFrontend) as sender:
        with pytest.raises(HashRefused, match="no control ring"):
            await sender.steer(KEY, [0])
        for _ in range(2):
            async with two.device(Steered) as card:
                assert backend_of(machine, two).statistics()["hashing"]["algorithm"] == "none"
                await sender.send(between(KNOWN[0]))
                assert (await card.receive()).hash is None
                await card.steer(KEY, [1, 1], HashType.IPV4)
                await sender.send(between(KNOWN[0]))
                assert (await card.receive()).hash == HashExtra(0, 1, KNOWN[0][4].to_bytes(4, "little"))
                await sender.send(between(KNOWN[5]))
                assert (await card.receive()).hash is None


async def test_a_control_ring_gone_wild_ends_the_device_and_nothing_else() -> None:
    dice = random.Random(4)
    async with (
        lab(f"mac={MAC}1", f"mac={MAC}2", f"mac={MAC}3") as (machine, (one, two, three)),
        two.device(NetFrontend) as other,
        three.device(NetFrontend) as third,
    ):
        async with one.device(Steered) as card:
            control = card._control
            assert control is not None
            for _ in range(300):
                words = [dice.choice((dice.getrandbits(32), dice.randrange(200), PAGE_REF)) for _ in range(3)]
                response = await control.call(CtrlRequest(0, dice.randrange(12), *words))
                assert response.status in (0, 1, 2)
                await other.send(A + B + between(KNOWN[0])[12:])
            page = next(page for ref, page in card.shared if bytes(page.data[:16]) == bytes(control.ring._header))
            page.data[0:4] = (0x12345).to_bytes(4, "little")
            control._notify()
            while card.connected:
                await trio.sleep(0.01)
        reason = machine.store.read(f"/local/domain/0/error/backend/vif/{one.domid}/0/error")
        assert reason.startswith(b"netif_ctrl ring of ")
        await other.send(frame(third.mac, other.mac, body=b"on"))
        assert (await third.receive()).data.endswith(b"on")
