# SPDX-License-Identifier: GPL-2.0-only
"""`xenstore-watch`: print the path of each change at or below nodes."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import ClassVar

from xenstore.errors import XenstoreError
from xenstore.operations import Operations
from xenstore.tools.common import Tool


class Watch(Tool):
    usage = "[-h] [-n NR] key"
    allowed = "nd"
    extra: ClassVar[Mapping[str, bool]] = {"json": False}

    def perform(self, store: Operations) -> int:
        most = _number(self.options.get("n", "-1"))
        depth = _number(self.options.get("d", "-1"))
        with self.client.monitor() as monitor:
            for path in self.arguments:
                try:
                    monitor.watch(path, path, depth if depth >= 0 else None)
                except XenstoreError:
                    suffix = f" with depth {depth}" if depth >= 0 else ""
                    self.die(f"Unable to add watch on {path}{suffix}\n")
            count = 0
            while most == -1 or count < most:
                event = monitor.wait()
                assert event is not None
                print(json.dumps({"path": event.path, "token": event.token}) if "json" in self.options else event.path)
                sys.stdout.flush()
                count += 1
        return 0


def _number(text: str) -> int:
    """As C's atoi."""
    text = text.strip()
    digits = 0
    while digits < len(text) and (text[digits].isdigit() or (digits == 0 and text[0] in "+-")):
        digits += 1
    try:
        return int(text[:digits])
    except ValueError:
        return 0


def main() -> int | None:
    tool = Watch("watch")
    return tool.run(tool.perform, transaction=False)


if __name__ == "__main__":
    sys.exit(main())
