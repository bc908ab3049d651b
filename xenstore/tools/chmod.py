# SPDX-License-Identifier: GPL-2.0-only
"""`xenstore-chmod`: set the permissions of a node, with -u of its parents too, with -r of all below it."""

from __future__ import annotations

import re
import sys

from xenstore.errors import XenstoreError
from xenstore.operations import Operations
from xenstore.tools.common import Tool, reason


class Chmod(Tool):
    usage = "[-h] [-u] [-r] [-s] key <mode [modes...]>"
    allowed = "ur"

    def perform(self, store: Operations) -> int:
        perms = []
        for mode in self.arguments[1:]:
            if mode[:1] not in ("n", "r", "w", "b"):
                self.die(f"Invalid permission specification: '{mode[:1]}'")
            number = re.match(r"\s*([+-]?\d+)", mode[1:])
            perms.append(f"{mode[0]}{int(number[1]) if number else 0}")
        self._set(store, self.arguments[0], perms, "u" in self.options, "r" in self.options)
        return 0

    def _set(self, store: Operations, path: str, perms: list[str], upto: bool, recurse: bool) -> None:
        if not path:
            return
        try:
            store.set_perms(path, perms)
        except XenstoreError as error:
            self.die(f"Error occurred setting permissions on '{path}': {reason(error)}")
        if upto:
            above, slash, _ = path.rpartition("/")
            if not slash:
                self.die(f"Unable to locate path separator '/' in '{path}'")
            self._set(store, above, perms, True, False)
        if recurse:
            try:
                names = store.list(path)
            except XenstoreError:
                return
            for name in names:
                self._set(store, f"{path}/{name}", perms, False, True)


def main() -> int | None:
    tool = Chmod("chmod")
    return tool.run(tool.perform, transaction=True)


if __name__ == "__main__":
    sys.exit(main())
