# SPDX-License-Identifier: GPL-2.0-only
"""`xenstore-ls --live`: the tree on the terminal, redrawn as it changes, what has changed marked for a while.

`LiveTree` keeps the picture and can be used without a terminal; `show` draws it with rich.
"""

from __future__ import annotations

import fnmatch
import time
from collections.abc import Callable
from typing import Final

from rich.console import Console
from rich.live import Live
from rich.text import Text
from rich.tree import Tree

from xenstore.client import Client
from xenstore.errors import XenstoreError
from xenstore.tools.common import quoted

MARKED_FOR: Final = 3.0
"""Seconds for which a change stays marked and a removed node stays in the picture."""
PER_SECOND: Final = 8
STYLES: Final = {"new": "bold green", "changed": "bold yellow", "removed": "red strike"}


class Entry:
    """One node of the picture."""

    __slots__ = ("mark", "since", "value")

    def __init__(self, value: bytes, mark: str, since: float) -> None:
        self.value = value
        self.mark = mark
        self.since = since


class LiveTree:
    """What is known of the tree below some paths, and what of it is new."""

    def __init__(self, client: Client, pattern: str = "*", clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._pattern = pattern
        self._clock = clock
        self.entries: dict[str, Entry] = {}
        self._tops: list[str] = []

    def load(self, top: str) -> None:
        """The first look: nothing of it counts as new."""
        self._tops.append(top)
        for path, value, _ in self._client.walk(top):
            self.entries[path] = Entry(value, "", 0.0)

    def changed(self, path: str) -> None:
        """The store says that something has changed at `path`."""
        now = self._clock()
        found: dict[str, bytes] = {}
        try:
            found = {name: value for name, value, _ in self._client.walk(path)}
        except XenstoreError:
            found = {}
        below = path.rstrip("/") + "/"
        for name, entry in self.entries.items():
            if (name == path or name.startswith(below)) and name not in found and entry.mark != "removed":
                entry.mark, entry.since = "removed", now
        if found:
            found = self._unknown_above(path) | found
        for name, value in found.items():
            known = self.entries.get(name)
            if known is None or known.mark == "removed":
                self.entries[name] = Entry(value, "new", now)
            elif known.value != value or name == path:
                known.value, known.since = value, now
                known.mark = known.mark or "changed"

    def _unknown_above(self, path: str) -> dict[str, bytes]:
        """Parents that were made together with `path`: the store tells only of `path`."""
        above: dict[str, bytes] = {}
        while (path := path.rpartition("/")[0]) and (path not in self.entries or self.entries[path].mark == "removed"):
            if not any(path.startswith(top.rstrip("/") + "/") for top in self._tops):
                break
            above = {path: self._client.read(path, b"")} | above
        return above

    def fade(self) -> None:
        """Drop marks, and removed nodes, that have been shown long enough."""
        now = self._clock()
        for path, entry in list(self.entries.items()):
            if entry.mark and now - entry.since >= MARKED_FOR:
                if entry.mark == "removed":
                    del self.entries[path]
                entry.mark = ""

    def _visible(self) -> set[str]:
        """The nodes that match the filter, and all above them."""
        visible: set[str] = set()
        for path in self.entries:
            if fnmatch.fnmatchcase(path, self._pattern):
                while path not in visible:
                    visible.add(path)
                    path = path.rpartition("/")[0] or "/"
        return visible

    def render(self) -> Tree:
        root = Tree(Text("xenstore", style="dim"), guide_style="dim")
        visible = self._visible()
        for top in self._tops:
            branches: dict[str, Tree] = {}
            below = top.rstrip("/") + "/"
            paths = [path for path in self.entries if path in visible and (path == top or path.startswith(below))]
            order = {path: number for number, path in enumerate(self.entries)}
            for path in sorted(paths, key=lambda path: (path.count("/") if path != "/" else 0, order[path])):
                above = branches.get(path.rpartition("/")[0] or "/", root) if path != top else root
                branches[path] = above.add(self._line(path, path if path == top else path.rpartition("/")[2]))
        return root

    def _line(self, path: str, name: str) -> Text:
        entry = self.entries[path]
        style = STYLES.get(entry.mark, "")
        line = Text(name, style=style)
        if entry.value:
            line.append(f' = "{quoted(entry.value)}"', style=style or "cyan")
        return line


def show(client: Client, tops: list[str], pattern: str, console: Console | None = None) -> int:
    """Draw until interrupted."""
    tree = LiveTree(client, pattern)
    with client.monitor() as monitor:
        for top in tops:
            monitor.watch(top)
            tree.load(top)
        with Live(console=console or Console(), auto_refresh=False, vertical_overflow="crop") as live:
            for _ in tops:
                monitor.wait()  # the event that every watch starts with
            while True:
                live.update(tree.render(), refresh=True)
                event = monitor.wait(1 / PER_SECOND)
                changed = set()
                while event is not None:
                    changed.add(event.path)
                    event = monitor.wait(0)
                for path in sorted(changed):
                    tree.changed(path)
                tree.fade()
