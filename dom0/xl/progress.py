# SPDX-License-Identifier: GPL-2.0-only
"""How far a long request has come, shown on stderr while it runs and gone when it is done.

A bar on a terminal; with `xl -t` a line rewritten by carriage returns, wherever stderr goes; else nothing. Owned by
the command that asks.
"""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Self

from dom0.toolstack.text import printable

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class ProgressDisplay:
    """Shows what `update` is told; a context manager, so that nothing of it stays behind."""

    def __init__(self, *, quiet: bool, carriage_return: bool) -> None:
        self._plain = carriage_return and not quiet
        self._bar = not quiet and not carriage_return and sys.stderr.isatty()
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._width = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()
        if self._width:
            sys.stderr.write("\n")

    def update(self, stage: str, done: int, total: int) -> None:
        """`done` of `total` of `stage`; a `total` of 0 says that nobody knows."""
        stage = printable(stage)
        if self._plain:
            text = f"{stage}: {done * 100 // total}%" if total > 0 else f"{stage}: {done}"
            sys.stderr.write(f"\r{text:<{self._width}}")
            sys.stderr.flush()
            self._width = len(text)
        elif self._bar:
            self._draw(stage, done, total)

    def _draw(self, stage: str, done: int, total: int) -> None:
        # Imported here: most runs of xl show no progress, and this import takes longer than they do.
        from rich.console import Console
        from rich.markup import escape
        from rich.progress import Progress

        if self._progress is None:
            self._progress = Progress(console=Console(stderr=True), transient=True, auto_refresh=False)
            self._progress.start()
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(escape(stage))
        self._progress.update(self._tasks[stage], completed=done, total=total if total > 0 else None, refresh=True)
