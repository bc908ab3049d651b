# SPDX-License-Identifier: GPL-2.0-only
"""Debian's kernel with its own xen-blkfront: its root is on our disk, data goes both ways, all of it is kept."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

from tests.block.linux import check_file_system, ext4_disk
from tests.system.harness import Host, until

PROGRAM = """\
#!/bin/sh
echo "root is on $(mount | grep ' on / ' | cut -d' ' -f1,5)"
while read -r line; do
    case $line in
    off) sync; mount -o remount,ro /; poweroff -f ;;
    *) eval "$line"; echo "done: $?" ;;
    esac
done
"""


def test_root_on_ext4_data_on_another_and_disks_that_come_and_go(host: Host, debian: None, tmp_path: Path) -> None:
    root = ext4_disk(tmp_path / "root.img", "cttyhack /bin/program", files={"bin/program": PROGRAM})
    data = tmp_path / "data.img"
    data.write_bytes(random.Random(1).randbytes(8 << 20))
    before = hashlib.md5(data.read_bytes()).hexdigest()
    extra = tmp_path / "extra.img"
    extra.write_bytes(bytes(1 << 20))
    config = host.config(
        "disky",
        kernel="image:debian/vmlinuz",
        ramdisk="image:debian/initramfs.gz",
        cmdline="console=hvc0 root=/dev/xvda quiet xen-blkfront.max_indirect_segments=64 xen_blkfront",
        memory=192,
    )
    config.write_text(config.read_text() + f"disk = ['{root},raw,xvda,rw', '{data},raw,xvdb,rw']\n")
    host.xl("create", config)
    with host.session("console", "disky") as console:
        console.expect("root is on /dev/xvda ext4")

        def run(line: str) -> None:
            console.send(line + "\n")
            console.expect("^done: 0")

        run("[ $(cat /sys/module/xen_blkfront/parameters/max_indirect_segments) = 64 ]")
        run(f"[ $(md5sum < /dev/xvdb | cut -d' ' -f1) = {before} ]")
        run("cp /bin/busybox /root/copy && sync && echo 3 > /proc/sys/vm/drop_caches && cmp /bin/busybox /root/copy")
        run("dd if=/bin/busybox of=/dev/xvdb bs=4k seek=16 conv=fsync,notrunc 2>/dev/null")
        host.xl("block-attach", "disky", f"{extra},raw,xvdc,rw")
        run("until [ -b /dev/xvdc ]; do sleep 0.1; done; echo hello there > /dev/xvdc; sync")
        host.xl("block-detach", "disky", "xvdc")
        assert extra.read_bytes().startswith(b"hello there\n")
        listed = host.xl("block-list", "disky").splitlines()
        assert [line.split()[0] for line in listed] == ["Vdev", "51712", "51728"]
        with open(data, "ab") as file:
            file.truncate(16 << 20)
        run("until [ $(cat /sys/block/xvdb/size) = 32768 ]; do sleep 0.1; done")
        console.send("off\n")
        until(lambda: "disky" not in host.names(), "the guest to be gone")
    check_file_system(root)
    busybox = data.read_bytes()[16 * 4096 :]
    assert busybox.startswith(b"\x7fELF")
