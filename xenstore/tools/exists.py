# SPDX-License-Identifier: GPL-2.0-only
"""`xenstore-exists`: exit code 0 if all nodes exist."""

from __future__ import annotations

import sys

from xenstore.errors import XenstoreError
from xenstore.operations import Operations
from xenstore.tools.common import Tool


class Exists(Tool):
    usage = "[-h] [-p] [-s] key [...]"

    def perform(self, store: Operations) -> int:
        for path in self.arguments:
            try:
                store.read(path)
            except XenstoreError:
                return 1
        return 0


def main() -> int | None:
    tool = Exists("exists")
    return tool.run(tool.perform, transaction=True)


if __name__ == "__main__":
    sys.exit(main())
