# SPDX-License-Identifier: GPL-2.0-only
"""`make soak`: all soak runs at their full length, one after the other."""

from __future__ import annotations

import sys

from tests.soak import blocks, boots, debian, drivers, forgeries, hostile, network, pairs, xenstore

RUNS = (boots, pairs, drivers, debian, xenstore, network, forgeries, hostile, blocks)

if __name__ == "__main__":
    sys.exit(next((status for run in RUNS if (status := run.main([]))), 0))
