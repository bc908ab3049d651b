# SPDX-License-Identifier: GPL-2.0-only
"""`make soak`: all soak runs at their full length, one after the other."""

from __future__ import annotations

import sys

from tests.soak import boots, drivers, network, pairs, xenstore

if __name__ == "__main__":
    sys.exit(boots.main([]) or pairs.main([]) or drivers.main([]) or xenstore.main([]) or network.main([]))
