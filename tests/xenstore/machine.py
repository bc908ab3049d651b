# SPDX-License-Identifier: GPL-2.0-only
"""The server beside the specification: a hypothesis state machine of several clients doing anything at all."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.xenstore.raw import RawClient, contents
from tests.xenstore.spec import Refused, Spec, SpecNode
from xenstore.errors import XenstoreError
from xenstore.quota import ALL
from xenstore.server import Server
from xenstore.types import DomId
from xenstore.wire import MsgType as M

DOMIDS = (0, 0, 1, 2, 3)
PATHS = (
    "/", "/a", "/a/b", "/a/b/c", "/a/x", "/d", "/d/e", "/local/domain/1", "/local/domain/1/x", "/local/domain/2/x/y",
    "x", "x/y",
)  # fmt: skip
CLIENTS = st.sampled_from(range(len(DOMIDS)))
PATH = st.sampled_from(PATHS)
TOKEN = st.sampled_from(("t", "u"))
INSIDE = st.integers(0, 3)
"""Outside any transaction (0, 1), or in one of those that are open."""
PERM = st.tuples(st.sampled_from((0, 1, 2, 3)), st.sampled_from("nrwb"))


class StoreMachine(RuleBasedStateMachine):
    """Each rule does one request on both sides and compares the answers."""

    def __init__(self) -> None:
        super().__init__()
        self.server = Server(clock=lambda: 0.0)
        for name in ALL:
            self.server.accounts.limits[name] = 0
        nodes = {
            path: SpecNode(value, [(int(text[1:]), text[0]) for text in perms], [name.decode() for name in children])
            for path, (value, perms, children) in contents(self.server).items()
            if path.startswith("/")
        }
        self.spec = Spec(nodes)
        self.clients: dict[int, RawClient] = {}
        self.open: dict[int, list[int]] = {}
        for number, domid in enumerate(DOMIDS):
            self._connect(number, domid)
        for path, perms in (("/a", ["n0", "b1", "r2"]), ("/d", ["r2"]), ("/local/domain/1", ["n1", "r3"])):
            self.mkdir_as_dom0(path, perms)

    def mkdir_as_dom0(self, path: str, perms: list[str]) -> None:
        entries = [(int(text[1:]), text[0]) for text in perms]
        self._both(0, lambda client: client.call(M.MKDIR, path), lambda: self.spec.write(0, path, None, 0))
        self._both(0, lambda client: client.chmod(path, *perms), lambda: self.spec.set_perms(0, path, entries, 0))

    def _connect(self, number: int, domid: int) -> None:
        client = self.clients[number] = RawClient(self.server, domid)
        self.open[number] = []
        self.spec.add_client(number, domid)
        if domid:
            self.server.domains.introduced(DomId(domid), client.connection)

    def _both(self, number: int, real: Callable[[RawClient], object], specified: Callable[[], object]) -> None:
        """The same answer, or the same error."""
        expected: object = None
        answer: object = None
        error = failure = ""
        try:
            expected = specified()
        except Refused as refused:
            error = str(refused)
        try:
            answer = real(self.clients[number])
        except XenstoreError as caught:
            failure = caught.error
        assert failure == error
        assert expected is None or answer == expected

    def _txid(self, number: int, inside: int) -> int:
        return self.open[number][inside - 2] if 2 <= inside < 2 + len(self.open[number]) else 0

    @rule(number=CLIENTS, path=PATH, inside=INSIDE)
    def read(self, number: int, path: str, inside: int) -> None:
        txid = self._txid(number, inside)
        full = self.spec.absolute(number, path)
        self._both(number, lambda client: client.read(path, txid), lambda: self.spec.read(number, full, txid))

    @rule(number=CLIENTS, path=PATH, inside=INSIDE)
    def directory(self, number: int, path: str, inside: int) -> None:
        txid = self._txid(number, inside)
        full = self.spec.absolute(number, path)
        self._both(number, lambda client: client.names(path, txid), lambda: self.spec.directory(number, full, txid))

    @rule(number=CLIENTS, path=PATH, inside=INSIDE)
    def get_perms(self, number: int, path: str, inside: int) -> None:
        txid = self._txid(number, inside)
        full = self.spec.absolute(number, path)
        self._both(
            number,
            lambda client: [(int(text[1:]), text[0]) for text in client.perms(path, txid)],
            lambda: self.spec.get_perms(number, full, txid),
        )

    @rule(number=CLIENTS, path=PATH, inside=INSIDE, value=st.sampled_from((b"", b"v", b"w\0")))
    def write(self, number: int, path: str, inside: int, value: bytes) -> None:
        txid = self._txid(number, inside)
        full = self.spec.absolute(number, path)
        self._both(
            number, lambda client: client.write(path, value, txid), lambda: self.spec.write(number, full, value, txid)
        )

    @rule(number=CLIENTS, path=PATH, inside=INSIDE)
    def mkdir(self, number: int, path: str, inside: int) -> None:
        txid = self._txid(number, inside)
        full = self.spec.absolute(number, path)
        self._both(
            number,
            lambda client: client.call(M.MKDIR, path, txid=txid),
            lambda: self.spec.write(number, full, None, txid),
        )

    @rule(number=CLIENTS, path=PATH, inside=INSIDE)
    def rm(self, number: int, path: str, inside: int) -> None:
        txid = self._txid(number, inside)
        full = self.spec.absolute(number, path)
        self._both(number, lambda client: client.rm(path, txid), lambda: self.spec.rm(number, full, txid))

    @rule(number=CLIENTS, path=PATH, inside=INSIDE, perms=st.lists(PERM, min_size=1, max_size=3))
    def set_perms(self, number: int, path: str, inside: int, perms: list[tuple[int, str]]) -> None:
        txid = self._txid(number, inside)
        full = self.spec.absolute(number, path)
        if full == "/":
            return  # the root stays dom0's
        texts = [f"{rights}{named}" for named, rights in perms]
        self._both(
            number,
            lambda client: client.chmod(path, *texts, txid=txid),
            lambda: self.spec.set_perms(number, full, perms, txid),
        )

    @rule(number=CLIENTS, path=PATH, token=TOKEN)
    def watch(self, number: int, path: str, token: str) -> None:
        self._both(
            number, lambda client: client.call(M.WATCH, path, token), lambda: self.spec.watch(number, path, token)
        )

    @rule(number=CLIENTS, path=PATH, token=TOKEN)
    def unwatch(self, number: int, path: str, token: str) -> None:
        self._both(
            number, lambda client: client.call(M.UNWATCH, path, token), lambda: self.spec.unwatch(number, path, token)
        )

    @rule(number=CLIENTS)
    def start(self, number: int) -> None:
        if len(self.open[number]) < 2:
            txid = self.clients[number].start()
            self.open[number].append(txid)
            self.spec.start(number, txid)

    @precondition(lambda self: any(self.open.values()))
    @rule(number=CLIENTS, commit=st.sampled_from((True, True, True, False)))
    def end(self, number: int, commit: bool) -> None:
        if not self.open[number]:
            return
        txid = self.open[number].pop(0)
        must, may = self.spec.end(number, txid, commit)
        try:
            self.clients[number].end(txid, commit)
        except XenstoreError as error:
            assert error.error == "EAGAIN" and may
            commit = False
        else:
            assert not must
        self.spec.finish(number, txid, commit)

    @rule(number=CLIENTS)
    def reset_watches(self, number: int) -> None:
        self.clients[number].call(M.RESET_WATCHES, "")
        self.open[number].clear()
        domid = self.spec.domids[number]
        events = self.spec.events[number]
        self.spec.drop_client(number)
        self.spec.add_client(number, domid)
        self.spec.events[number] = events

    @rule(domid=st.sampled_from((1, 2, 3)))
    def domain_dies_and_another_gets_its_number(self, domid: int) -> None:
        number = DOMIDS.index(domid)
        self.server.domains.gone(DomId(domid))
        self.spec.die(domid)
        self._connect(number, domid)

    @invariant()
    def same_events(self) -> None:
        for number, client in self.clients.items():
            events = client.events()
            assert set(events) == self.spec.events[number], number
            self.spec.events[number].clear()

    @invariant()
    def same_contents(self) -> None:
        found = {path: node for path, node in contents(self.server).items() if path.startswith("/")}
        expected = {
            path: (node.value, tuple(f"{rights}{named}" for named, rights in node.perms), tuple(node.children))
            for path, node in self.spec.nodes.items()
        }
        assert {path: (value, perms, tuple(name.decode() for name in children)) for path, (value, perms, children) in
                found.items()} == expected  # fmt: skip

    def teardown(self) -> None:
        for number in list(self.clients):
            self.clients[number].close()
        assert self.server.control.problems() == []
        assert self.server.tree.newest is None
        assert len(self.server.watches) == 0
