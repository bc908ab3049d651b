# SPDX-License-Identifier: GPL-2.0-only
"""`xenstore-list`: print the names of the children of nodes."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import ClassVar

from xenstore.errors import XenstoreError
from xenstore.operations import Operations
from xenstore.tools.common import Tool, json_text


class List(Tool):
    usage = "[-h] [-p] [-s] key [...]"
    allowed = "p"
    extra: ClassVar[Mapping[str, bool]] = {"json": False}

    def perform(self, store: Operations) -> int:
        found = {}
        for path in self.arguments:
            try:
                names = store.list(path)
            except XenstoreError:
                self.warn(f"could not list path {path}")
                return 1
            found[path] = names
            if "json" not in self.options:
                prefix = f"{path}/" if "p" in self.options else ""
                self.output("".join(f"{prefix}{name}\n" for name in names))
        if "json" in self.options:
            self.output(json_text(found))
        return 0


def main() -> int | None:
    tool = List("list")
    return tool.run(tool.perform, transaction=True)


if __name__ == "__main__":
    sys.exit(main())
