# SPDX-License-Identifier: GPL-2.0-only
"""The server and the specification never disagree (a million steps of it: tests/soak)."""

from __future__ import annotations

from hypothesis import settings

from tests.xenstore.machine import StoreMachine

StoreMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=50, deadline=None, database=None)
TestModel = StoreMachine.TestCase
