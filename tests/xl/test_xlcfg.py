# SPDX-License-Identifier: GPL-2.0-only
"""xl.cfg: from text to a `DomainConfig`, with xl's words for what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dom0.toolstack.config import ConfigError, DomainConfig, ShutdownAction
from dom0.toolstack.xlcfg import parse_config, read_config_file
from dom0.toolstack.xlcfg_keys import KNOWN, NOT_BUILT_YET, SUPPORTED, WITHOUT_EFFECT_ON_PV

PV = """\
name="gpv"
type="pv"
kernel="/guest/vmlinuz"
ramdisk="/guest/domu.cpio.gz"
cmdline="console=hvc0 rdinit=/init panic=5"
memory=128
vcpus=1
on_crash="destroy"
on_reboot="destroy"
"""
MINIMAL = 'name="x"\nkernel="/k"\n'


def configured(text: str, *overrides: str) -> tuple[DomainConfig, list[str]]:
    warnings: list[str] = []
    return parse_config(text, "F", overrides, warnings.append), warnings


def test_a_whole_file() -> None:
    config, warnings = configured(PV, 'uuid="A7AF0DF8-bb52-49a9-a4e5-5402b7fbe831"')
    assert config == DomainConfig(
        name="gpv",
        uuid="a7af0df8-bb52-49a9-a4e5-5402b7fbe831",
        memory_kb=131072,
        kernel="/guest/vmlinuz",
        ramdisk="/guest/domu.cpio.gz",
        cmdline="console=hvc0 rdinit=/init panic=5",
        on_reboot=ShutdownAction.DESTROY,
    )
    assert warnings == []


def test_every_key_of_xl_is_in_one_table() -> None:
    tables = (SUPPORTED, WITHOUT_EFFECT_ON_PV, frozenset(NOT_BUILT_YET))
    # the 170 of xl_parse.c, device_model_args in its three forms, and one of our own: device
    assert sum(map(len, tables)) == len(KNOWN) == 173


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("memory=0x80", "memory_kb", 131072),
        ("memory='0200'", "memory_kb", 131072),
        ("maxmem=64", "memory_kb", 65536),
        ("memory=32\nmaxmem=64", "maxmem_kb", 65536),
        ("", "memory_kb", 32768),
        ("vcpus=0", "vcpus", 1),
        ("vcpus=2", "maxvcpus", 2),
        ("vcpus=2\nmaxvcpus=4", "maxvcpus", 4),
        ("root='/dev/xvda1 ro'", "cmdline", "root=/dev/xvda1 ro"),
        ("extra='quiet'", "cmdline", "quiet"),
        ("root='/dev/xvda1'\nextra='quiet'", "cmdline", "root=/dev/xvda1 quiet"),
        ("cmdline=''", "cmdline", ""),
        ("ramdisk=''", "ramdisk", None),
        ("builder='generic'", "name", "x"),
        ("type='p'", "name", "x"),
        ("on_poweroff='preserve'", "on_poweroff", ShutdownAction.PRESERVE),
        ("on_soft_reset='soft-reset'", "on_soft_reset", ShutdownAction.SOFT_RESET),
        ("", "on_reboot", ShutdownAction.RESTART),
        ("max_event_channels=4095", "max_event_channels", 4095),
        ("bootloader='/usr/bin/pygrub'", "bootloader", "pygrub"),
        ("bootloader=''", "bootloader", None),
        ("max_grant_frames=16", "max_grant_frames", 16),
        ("nomigrate=1", "nomigrate", True),
        ("nomigrate=0", "nomigrate", False),
    ],
)
def test_single_keys(text: str, field: str, value: Any) -> None:
    config, warnings = configured(MINIMAL + text)
    assert getattr(config, field) == value
    assert warnings == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kernel='/k'", "Domain name must be specified."),
        ("name='x'", "Neither kernel nor bootloader specified"),
        ("name='x'\nkernel=''", "Neither kernel nor bootloader specified"),
        ("name=''\nkernel='/k'", "Domain name must be specified."),
        ("name=['x']\nkernel='/k'", "F:1: parameter `name' is a list but should be a single value"),
        (MINIMAL + "memory=[1]", "F:3: parameter `memory' is a list but should be a single value"),
        (MINIMAL + "memory='lots'", "F:3: parameter `memory' is not a valid number"),
        (MINIMAL + "memory=08", "F:3: parameter `memory' is not a valid number"),
        (MINIMAL + "memory=0", "F:3: parameter `memory': value `0' is smaller than minimum bound '1'"),
        (MINIMAL + "memory='-5'", "F:3: parameter `memory': value `-5' is smaller than minimum bound '1'"),
        (MINIMAL + f"memory={'9' * 5000}", "F:3: parameter `memory' is not a valid number"),
        (MINIMAL + "memory=1\nmemory+=2", "F:4: can't use += with numbers for parameter `memory'"),
        (MINIMAL + "memory=64\nmaxmem=32", "maxmem (32768 KiB) is less than memory (65536 KiB)"),
        (MINIMAL + "vcpus=2\nmaxvcpus=1", "xl: maxvcpus < vcpus"),
        (MINIMAL + "vcpus=8193", "vcpus is 8193, it must lie between 1 and 8192"),
        (MINIMAL + "max_grant_frames='-1'",
         "F:3: parameter `max_grant_frames': value `-1' is smaller than minimum bound '0'"),
        (MINIMAL + "uuid='{a7af0df8}'", "Failed to parse UUID: {a7af0df8}"),
        (MINIMAL + "type='xyz'", "Invalid domain type xyz."),
        (MINIMAL + "type=''", "Invalid domain type ."),
        (MINIMAL + "builder='linux'", "Invalid domain type linux."),
        (MINIMAL + "type='pv'\nbuilder='hvm'", 'Contradicting "builder" and "type" options specified.'),
        (MINIMAL + "type='pvh'", 'F:3: type="pvh": xen-py boots PV guests only, it does not have this yet'),
        (MINIMAL + "builder='hvm'", 'F:3: type="hvm": xen-py boots PV guests only, it does not have this yet'),
        (MINIMAL + "on_crash='explode'", 'Unknown on_crash action "explode" specified'),
        (MINIMAL + "on_crash='coredump-restart'", 'F:3: on_crash="coredump-restart": xen-py does not have this yet'),
        (MINIMAL + "on_reboot='soft-reset'", 'F:3: on_reboot="soft-reset": xen-py does not have this yet'),
        (MINIMAL + "vif=['nonsense']", "unrecognized argument `nonsense'"),
        (MINIMAL + "vif=['mac=1:2:3']", "Invalid parameter `mac'."),
        (MINIMAL + "vif=['rate=10']", "F: config parsing error in vif: invalid rate in `10'"),
        (MINIMAL + "vtpm=['']", "F:3: parameter `vtpm': xen-py does not have this yet"),
        (
            MINIMAL + "disk=['/img,raw']",
            "F: config parsing error in disk specification: no vdev specified in `/img,raw'",
        ),
        (MINIMAL + "disk='/img,raw,xvda'", "F:3: parameter `disk' is a single value but should be a list"),
        (MINIMAL + "cpus='0-3'", "F:3: parameter `cpus': xen-py does not have this yet"),
        ("name='x'\nbootloader='/usr/lib/pypxeboot'",
         'F:2: bootloader="/usr/lib/pypxeboot": xen-py has "pygrub" only'),
        ("name='x'\nbootloader='pygrub'\nbootloader_args=['-q']",
         "F:3: parameter `bootloader_args': xen-py does not have this yet"),
        (MINIMAL + "device=['type=echo', 'devid=1']",
         "F:3: device='devid=1': a device needs a type= (for which a backend is installed)"),
        (MINIMAL + "device=['type=echo,state=4']",
         "F:3: device='type=echo,state=4': state= is not for a configuration to set"),
        (MINIMAL + "device=['type=vif']", "F:3: device='type=vif': type=vif is not a type that `device' can have"),
        (MINIMAL + "device=['type=echo,devid=0', 'type=echo,devid=0']",
         "F:3: device='type=echo,devid=0': there are two devices echo 0"),
        (MINIMAL + "device='type=echo'", "F:3: parameter `device' is a single value but should be a list"),
        (MINIMAL + "timer_mode=1", 'ERROR: "timer_mode" option is not supported for PV guests.'),
    ],
)  # fmt: skip
def test_what_cannot_be_has_one_clear_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        configured(text)
    assert str(caught.value) == message


@pytest.mark.parametrize("key", sorted(NOT_BUILT_YET))
def test_every_key_that_is_not_built_is_refused_by_name(key: str) -> None:
    with pytest.raises(ConfigError, match=f'F:3: parameter `{key}\'|"{key}" option'):
        configured(MINIMAL + f"{key}=['something']")


@pytest.mark.parametrize("key", sorted(NOT_BUILT_YET.keys() - {"timer_mode"}))
def test_what_asks_for_nothing_is_no_error(key: str) -> None:
    for value in ("[]", *(f"'{word}'" for word in NOT_BUILT_YET[key])):
        assert configured(MINIMAL + f"{key}={value}")[1] == []


@pytest.mark.parametrize("key", sorted(WITHOUT_EFFECT_ON_PV))
def test_keys_of_other_guest_types_are_passed_over_with_a_warning(key: str) -> None:
    assert configured(MINIMAL + f"{key}='on'")[1] == [f"F:3: warning: parameter `{key}' has no effect on a PV guest"]


def test_numbers_compare_as_numbers() -> None:
    assert configured(MINIMAL + "cpu_weight=0x100\nxenstore_feature_mask=4294967295\ncpus=['all','all']")[1] == []


@pytest.mark.parametrize(
    ("key", "hint"),
    [("memmory", ", did you mean `memory'?"), ("on_rebot", ", did you mean `on_reboot'?"), ("zzzzzz", "")],
)
def test_an_unknown_key_is_warned_about(key: str, hint: str) -> None:
    _, warnings = configured(MINIMAL + f"{key}=1")
    assert warnings == [f"F:3: warning: unknown parameter `{key}' is ignored{hint}"]


def test_warnings_come_even_when_an_error_follows() -> None:
    warnings: list[str] = []
    with pytest.raises(ConfigError):
        parse_config("nmae='x'", "F", (), warnings.append)
    assert warnings == ["F:1: warning: unknown parameter `nmae' is ignored, did you mean `name'?"]


def test_cmdline_wins_over_root_and_extra() -> None:
    config, warnings = configured(MINIMAL + "cmdline='c'\nroot='r'")
    assert (config.cmdline, warnings) == ("c", ["Warning: ignoring root= and extra= in favour of cmdline="])


def test_the_command_line_overrides_and_is_named_in_errors() -> None:
    assert configured(MINIMAL + "memory=64", "memory=128", "extra='a'")[0].memory_kb == 131072
    with pytest.raises(ConfigError, match="<command line>:2: parameter `memory'"):
        configured(MINIMAL, "vcpus=1", "memory='x'")


def test_reading_files(tmp_path: Path) -> None:
    good, bad, large = tmp_path / "good", tmp_path / "bad", tmp_path / "large"
    good.write_text(PV)
    bad.write_bytes(b"name='x'\nextra='\xff'\n")
    large.write_bytes(b"#" * ((1 << 20) + 1))
    assert read_config_file(str(good)) == PV
    assert read_config_file("/dev/null") == ""
    with pytest.raises(ConfigError, match="bad:2: not UTF-8 text"):
        read_config_file(str(bad))
    with pytest.raises(ConfigError, match="too large"):
        read_config_file(str(large))
    for path, word in ((tmp_path / "none", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(OSError, match=word):
            read_config_file(str(path))
