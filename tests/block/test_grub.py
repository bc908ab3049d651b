# SPDX-License-Identifier: GPL-2.0-only
"""Debian's GRUB for Xen finds the disk's grub.cfg and starts the kernel in it, in the same domain."""

from __future__ import annotations

from pathlib import Path

from dom0.image.paths import images_dir
from tests import debian as packages
from tests.block.linux import check_file_system, ext4_disk
from tests.block.test_linux import PROGRAM
from tests.system.harness import Host, until

GRUB_CFG = """\
set timeout=0
menuentry Linux {
    linux /boot/vmlinuz root=/dev/xvda console=hvc0 quiet
    initrd /boot/initrd.gz
}
"""


def test_from_grub_to_a_root_on_ext4(host: Host, debian: None, tmp_path: Path) -> None:
    grub = packages.unpacked("grub-xen-host") / "usr" / "lib" / "grub-xen" / "grub-x86_64-xen.bin"
    images = images_dir() / "debian"
    disk = ext4_disk(
        tmp_path / "root.img",
        "cttyhack /bin/program",
        files={
            "bin/program": PROGRAM,
            "boot/grub/grub.cfg": GRUB_CFG,
            "boot/vmlinuz": (images / "vmlinuz").read_bytes(),
            "boot/initrd.gz": (images / "initramfs.gz").read_bytes(),
        },
    )
    config = host.config("grubby", kernel=str(grub), memory=256)
    config.write_text(config.read_text() + f"disk = ['{disk},raw,xvda,rw']\n")
    host.xl("create", config)
    with host.session("console", "grubby") as console:
        console.expect("root is on /dev/xvda ext4")
        console.send("[ $(cat /sys/hypervisor/type) = xen ] && sync && grep -c . /proc/interrupts\n")
        console.expect("^done: 0")
        console.send("off\n")
        until(lambda: "grubby" not in host.names(), "the guest to be gone")
    check_file_system(disk)
    assert "crashed" not in host.xl("dmesg")
