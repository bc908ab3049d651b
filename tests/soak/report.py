# SPDX-License-Identifier: GPL-2.0-only
"""A soak run's folder, its words, and its end: cleaned up when all went well, kept to be looked at when not."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import Self


class Report:
    """Context of one run; an exception in it is the run's failure and ends here."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._began = time.monotonic()
        self.folder = Path(tempfile.mkdtemp(prefix=f"xen-py-{name}-"))
        self.status = 0

    def say(self, text: str) -> None:
        print(f"{self._name} {time.monotonic() - self._began:7.1f} s: {text}", flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, _trace: object) -> bool:
        if error is None:
            self.say("passed")
            shutil.rmtree(self.folder)
            return True
        self.status = 1
        self.say(f"FAILED: {type(error).__name__}: {error}")
        self.say(f"logs are in {self.folder}")
        return isinstance(error, Exception)
