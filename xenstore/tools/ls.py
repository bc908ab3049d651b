# SPDX-License-Identifier: GPL-2.0-only
"""`xenstore-ls`: print the tree; --json for programs, --live to see it change."""

from __future__ import annotations

import fcntl
import fnmatch
import struct
import sys
import termios
from collections.abc import Mapping
from typing import Any, ClassVar, Final

from xenstore.errors import NotFound, XenstoreError
from xenstore.operations import Operations
from xenstore.tools.common import Tool, json_text, json_value, quoted, reason

TAG_LEN: Final = len(' = "..."')
DESIRED_WIDTH: Final = 60
UNLIMITED: Final = (2**31 - 1) // 2


class Ls(Tool):
    usage = "[-h] [-f] [-p] [-s] [path]"
    allowed = "fp"
    extra: ClassVar[Mapping[str, bool]] = {"json": False, "live": False, "filter": True}
    least = 0

    def perform(self, store: Operations) -> int:
        self._flat = "f" in self.options
        self._perms = "p" in self.options
        self._desired = 0 if self._flat else DESIRED_WIDTH
        self._width = _terminal_width()
        if self._width is None:
            self._width = UNLIMITED if self._flat else 80
        paths = self.arguments or ["/"]
        if "live" in self.options:
            from xenstore.tools.live import show

            return show(self.client, paths, self.options.get("filter", "*"))
        if "json" in self.options:
            self.output(json_text({path: self._json(store, path) for path in paths}))
            return 0
        for path in paths:
            self._list(store, path, 0)
        return 0

    def _json(self, store: Operations, path: str) -> dict[str, Any]:
        """A node with its value, permissions and children."""
        try:
            return self._json_node(store, path, path)
        except XenstoreError as error:
            self.die(f"xs_directory ({path}): {reason(error)}")

    def _json_node(self, store: Operations, path: str, shown: str) -> dict[str, Any]:
        node: dict[str, Any] = {"value": json_value(store.read(path)), "perms": store.get_perms(path)}
        children = {}
        for name in store.list(path):
            below = f"{path.rstrip('/')}/{name}"
            try:
                child = self._json_node(store, below, below)
            except NotFound:
                continue
            pattern = self.options.get("filter")
            if pattern is None or child.get("children") or fnmatch.fnmatchcase(below, pattern):
                children[name] = child
        if children:
            node["children"] = children
        return node

    def _list(self, store: Operations, path: str, depth: int) -> None:
        try:
            names = store.list(path)
        except XenstoreError as error:
            if depth and isinstance(error, NotFound):
                return  # it has disappeared meanwhile
            self.flush()
            self.die(f"xs_directory ({path}): {reason(error)}")
        for name in names:
            below = f"{path}{'' if path.endswith('/') else '/'}{name}"
            if "filter" not in self.options or fnmatch.fnmatchcase(below, self.options["filter"]):
                self._print(store, below, name, depth)
            self._list(store, below, depth + 1)

    def _print(self, store: Operations, path: str, name: str, depth: int) -> None:
        """One line, laid out as Xen's tool does it."""
        width = self._width
        assert width is not None
        if self._flat:
            self.output(path)
            used = 0
        else:
            cut = width - TAG_LEN - depth
            shown = name[:cut] if cut >= 0 else name
            self.output(" " * depth + shown)
            used = depth + len(shown)
        try:
            value: bytes | None = store.read(path)
        except XenstoreError:
            value = None
        if value is None:
            self.output(":\n")
        elif width < used + len(value) + TAG_LEN:
            cut = width - TAG_LEN - used
            text = quoted(value)
            self.output(f' = "{text[:cut] if cut >= 0 else text}\\..."')
        else:
            text = f' = "{quoted(value)}"'
            self.output(text)
            if self._perms:
                used += len(text)
                dots = range(used + 1, min(self._desired, width))
                self.output(" " + "".join("." if column & 1 else " " for column in dots))
        if self._perms:
            try:
                self.output(f"  ({','.join(store.get_perms(path))})")
            except XenstoreError as error:
                self.flush()
                self.warn(f"\ncould not access permissions for {name}: {reason(error)}")
        self.output("\n")


def _terminal_width() -> int | None:
    try:
        size = fcntl.ioctl(sys.stdout.fileno(), termios.TIOCGWINSZ, bytes(8))
    except (OSError, ValueError):
        return None
    return int(struct.unpack("4H", size)[1]) - 2


def main() -> int | None:
    tool = Ls("ls")
    return tool.run(tool.perform, transaction=False)


if __name__ == "__main__":
    sys.exit(main())
