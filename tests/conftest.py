# SPDX-License-Identifier: GPL-2.0-only
"""What every test stands on. Before the tests are collected, in the thread that collects them."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """Let signals work in what the tests start, also when they run in the background of a script or under nohup.

    A shell without job control starts background commands with SIGINT and SIGQUIT ignored, nohup its own with SIGHUP,
    and that is inherited through exec; Python then installs no handler of its own.
    """
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            default = signal.default_int_handler if number is signal.SIGINT else signal.SIG_DFL
            signal.signal(number, default)
