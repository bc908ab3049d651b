# SPDX-License-Identifier: GPL-2.0-only
"""`xenstore-write`: give nodes values, all at once."""

from __future__ import annotations

import os
import sys

from xenstore.errors import XenstoreError
from xenstore.operations import Operations
from xenstore.tools.common import Tool, unquoted


class Write(Tool):
    usage = "[-h] [-s] [-R] key value [...]"
    allowed = "R"

    def perform(self, store: Operations) -> int:
        for path, text in zip(self.arguments[::2], self.arguments[1::2], strict=True):
            value = os.fsencode(text)
            try:
                store.write(path, value if "R" in self.options else unquoted(value))
            except XenstoreError:
                self.warn(f"could not write path {path}")
                return 1
        return 0


def main() -> int | None:
    tool = Write("write")
    if len(tool.arguments) % 2:
        tool.complain_usage()
    return tool.run(tool.perform, transaction=len(tool.arguments) > 2)


if __name__ == "__main__":
    sys.exit(main())
