# SPDX-License-Identifier: GPL-2.0-only
"""`DomainConfig`: its checks, its plain form, and libxl's JSON byte for byte."""

from __future__ import annotations

from typing import Any

import attrs
import msgpack  # type: ignore[import-untyped]
import pytest

from dom0.toolstack.config import ConfigError, DomainConfig, ShutdownAction, domain_zero_libxl, libxl_json

GUEST = DomainConfig(
    name="gpv",
    uuid="a7af0df8-bb52-49a9-a4e5-5402b7fbe831",
    memory_kb=131072,
    kernel="/guest/vmlinuz",
    ramdisk="/guest/domu.cpio.gz",
    cmdline="console=hvc0 rdinit=/init panic=5",
    on_reboot=ShutdownAction.DESTROY,
)

DRY_RUN = """\
{
    "c_info": {
        "type": "pv",
        "name": "gpv",
        "uuid": "a7af0df8-bb52-49a9-a4e5-5402b7fbe831",
        "run_hotplug_scripts": "True"
    },
    "b_info": {
        "max_vcpus": 1,
        "avail_vcpus": [
            0
        ],
        "max_memkb": 131072,
        "target_memkb": 131072,
        "sched_params": {

        },
        "claim_mode": "True",
        "kernel": "/guest/vmlinuz",
        "cmdline": "console=hvc0 rdinit=/init panic=5",
        "ramdisk": "/guest/domu.cpio.gz",
        "type.pv": {

        },
        "arch_arm": {

        },
        "arch_x86": {

        }
    },
    "on_soft_reset": "soft_reset"
}"""


def test_the_dry_run_json_is_that_of_xl() -> None:
    assert GUEST.to_libxl_json() == DRY_RUN


def test_a_running_domain_shows_what_libxl_reads_back() -> None:
    running = GUEST.to_libxl(running=True)
    assert list(running["c_info"].items())[2] == ("domid", 4294967295)
    assert list(running["b_info"])[2:6] == ["max_memkb", "target_memkb", "video_memkb", "sched_params"]
    assert libxl_json([{"sched_params": running["b_info"]["sched_params"]}]) == (
        '[\n    {\n        "sched_params": {\n            "sched": "credit2",\n'
        '            "weight": 256,\n            "cap": 0\n        }\n    }\n]'
    )
    assert running["b_info"]["arch_x86"] == {"msr_relaxed": "False"}


def test_optional_values_appear_where_libxl_puts_them() -> None:
    config = attrs.evolve(
        GUEST,
        maxmem_kb=262144,
        vcpus=2,
        maxvcpus=4,
        max_event_channels=2047,
        max_grant_frames=16,
        nomigrate=True,
        on_reboot=ShutdownAction.RESTART,
        on_crash=ShutdownAction.RENAME_RESTART,
        cmdline=None,
    )
    built = config.to_libxl()
    assert " ".join(built["b_info"]) == (
        "max_vcpus avail_vcpus max_memkb target_memkb disable_migrate max_grant_frames "
        "sched_params claim_mode event_channels kernel ramdisk type.pv arch_arm arch_x86"
    )
    assert built["b_info"]["avail_vcpus"] == [0, 1]
    assert built["b_info"]["disable_migrate"] == "True"
    assert list(built)[2:] == ["on_reboot", "on_crash", "on_soft_reset"]
    assert (built["on_reboot"], built["on_crash"]) == ("restart", "restart_rename")


def test_domain_zero() -> None:
    text = libxl_json(domain_zero_libxl(1048575))
    assert '"name": "Domain-0"\n    },\n    "b_info": {\n        "max_memkb": 17179869180,' in text


def test_plain_form_survives_msgpack() -> None:
    carried = msgpack.unpackb(msgpack.packb(GUEST.to_plain()))
    assert DomainConfig.from_plain(carried) == GUEST


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": ""}, "Domain name must be specified."),
        ({"name": "a/b"}, "may not contain '/'"),
        ({"name": "a\nb"}, "control characters"),
        ({"name": ".."}, "may not"),
        ({"name": "x" * 129}, "longer than 128"),
        ({"name": 3}, "'name' of a domain configuration must be str"),
        ({"uuid": "nonsense"}, "Failed to parse UUID: nonsense"),
        ({"memory_kb": 0}, "memory_kb is 0"),
        ({"memory_kb": True}, "must be int"),
        ({"maxmem_kb": 1}, "is less than memory"),
        ({"vcpus": 0}, "vcpus is 0"),
        ({"vcpus": 2, "maxvcpus": 1}, "xl: maxvcpus < vcpus"),
        ({"kernel": ""}, "Neither kernel nor bootloader specified"),
        ({"cmdline": "a\0b"}, "NUL"),
        ({"on_crash": "explode"}, 'Unknown on_crash action "explode" specified'),
        ({"max_event_channels": -1}, "max_event_channels is -1"),
        ({"surprise": 1}, "unknown field 'surprise'"),
    ],
)
def test_what_cannot_be_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words.replace("(", r"\(")):
        DomainConfig.from_plain(GUEST.to_plain() | change)


@pytest.mark.parametrize("plain", [None, [], "x", {}, {"name": "x"}, {"kernel": "k"}])
def test_what_is_no_configuration_is_refused(plain: object) -> None:
    with pytest.raises(ConfigError):
        DomainConfig.from_plain(plain)


def test_defaults_follow_memory_and_vcpus() -> None:
    config = DomainConfig(name="x", kernel="/k", memory_kb=65536, vcpus=3)
    assert (config.maxmem_kb, config.maxvcpus) == (65536, 3)
    assert config.uuid != DomainConfig(name="x", kernel="/k").uuid
