# SPDX-License-Identifier: GPL-2.0-only
"""A store that is restarted in place: domains keep all they had but their transactions."""

from __future__ import annotations

