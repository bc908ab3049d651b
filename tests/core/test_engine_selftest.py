# SPDX-License-Identifier: GPL-2.0-only
"""The start-up self-test passes with the emulator installed, and finds what it is there to find."""

from __future__ import annotations

import pytest

from xen_py.engine import EngineError, ExitKind, R, selftest
from xen_py.engine.unicorn import UnicornEngine


def test_the_installed_emulator_is_precise() -> None:
    selftest.verify_precise_stops()


class Imprecise(UnicornEngine):
    """Executes one `lock inc` again before each stop, as Unicorn does by itself."""

    def __init__(self, translation_buffer: int) -> None:
        super().__init__(translation_buffer)
        precise = self.run

        def run() -> int:
            kind: int = precise()
            self._counter[5 * 512] += kind == ExitKind.KICKED and self._counter[5 * 512] > 0
            return kind

        self.run = run

    def map(self, machine_address: int, host: memoryview) -> None:
        super().map(machine_address, host)
        self._counter = host.cast("Q")

    def close(self) -> None:
        self._counter.release()
        super().close()


class Forgetful(UnicornEngine):
    """Loses a stop that comes before the guest is entered."""

    def __init__(self, translation_buffer: int) -> None:
        super().__init__(translation_buffer)
        real = self.run

        def run() -> int:
            if self.kick_pending():
                self.clear_kick()
                self.regs[R.RCX] = 1000
            return int(real())

        self.run = run


@pytest.mark.parametrize(("engine", "message"), [(Imprecise, "imprecise"), (Forgetful, "just before the guest ran")])
def test_a_bad_emulator_is_refused(engine: type[UnicornEngine], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "UnicornEngine", engine)
    with pytest.raises(EngineError, match=message):
        selftest.verify_precise_stops()
