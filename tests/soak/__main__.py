# SPDX-License-Identifier: GPL-2.0-only
"""`make soak`: all soak runs at their full length, one after the other."""

from __future__ import annotations

import sys

from tests.soak import boots, debian, drivers, pairs, xenstore

if __name__ == "__main__":
    sys.exit(boots.main([]) or pairs.main([]) or drivers.main([]) or debian.main([]) or xenstore.main([]))
