# SPDX-License-Identifier: GPL-2.0-only
"""`make demo`, as README.md promises it to a newcomer."""

from __future__ import annotations

from tests.system.harness import Host, Session, until


def test_it_ends_at_a_prompt_and_leads_back_to_it(host: Host, debian: None) -> None:
    command, terminal = ["make", "demo"], (40, 120)
    with Session(command, host.environment, terminal) as demo:
        demo.expect("/ # ")
        demo.send("echo $((40 + 2)) >/tmp/answer\n")
        demo.expect("/ # ")
        demo.send("\x1d")
        assert demo.finish() == 0
    assert host.names() == ["debian"]
    with Session(command, host.environment, terminal) as again:
        again.expect("still runs")
        again.send("cat /tmp/answer\n")
        again.expect(r"^42\r?$")
        again.send("poweroff\n")
        assert again.finish() == 0
    until(lambda: host.names() == [], "the guest to be gone")
