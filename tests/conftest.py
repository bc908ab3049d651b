# SPDX-License-Identifier: GPL-2.0-only
"""What every test stands on. Before the tests are collected, in the thread that collects them."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """Let Ctrl-C work in what the tests start, also when they run in the background of a script.

    A shell without job control starts background commands with SIGINT ignored, and that is inherited through exec;
    Python then installs no handler of its own.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
