# SPDX-License-Identifier: GPL-2.0-only
"""`xenstore-rm`: remove nodes; with -t also the parents that become empty by it."""

from __future__ import annotations

import sys

from xenstore.errors import XenstoreError
from xenstore.operations import Operations
from xenstore.tools.common import Tool


class Remove(Tool):
    usage = "[-h] [-s] [-t] key [...]"
    allowed = "t"

    def perform(self, store: Operations) -> int:
        for path in self.arguments:
            while True:
                try:
                    store.delete(path)
                except XenstoreError:
                    self.warn(f"could not remove path {path}")
                    return 1
                path, slash, _ = path.rpartition("/")
                if "t" not in self.options or not slash or not self._is_empty(store, path):
                    break
        return 0

    @staticmethod
    def _is_empty(store: Operations, path: str) -> bool:
        try:
            return store.read(path) == b"" and not store.list(path)
        except XenstoreError:
            return False


def main() -> int | None:
    tool = Remove("rm")
    return tool.run(tool.perform, transaction=True)


if __name__ == "__main__":
    sys.exit(main())
