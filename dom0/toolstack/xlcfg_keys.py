# SPDX-License-Identifier: GPL-2.0-only
"""Every key xl looks up in a domain's configuration, and what becomes of it here.

Tables only, read by `dom0.toolstack.xlcfg`; a key moves from one table to another when its feature is built. The keys
and what they mean for a PV guest: `parse_config_data` in tools/xl/xl_parse.c, xl.cfg(5).
"""

from __future__ import annotations

from difflib import get_close_matches


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


SUPPORTED = _words("""
    name uuid type builder memory maxmem vcpus maxvcpus kernel ramdisk bootloader cmdline root extra
    on_poweroff on_reboot on_watchdog on_crash on_soft_reset
    max_event_channels max_grant_frames max_maptrack_frames max_grant_version nomigrate
    device disk vif
""")

WITHOUT_EFFECT_ON_PV = _words("""
    hap oos shadow_memory nestedhvm acpi pvshim pvshim_path pvshim_cmdline pvshim_extra
    firmware_override bios bios_path_override pae acpi_s3 acpi_s4 acpi_laptop_slate nx hpet vpt_align apic hvm_pirq
    viridian mmio_hole altp2mhvm smbios smbios_firmware acpi_firmware ms_vm_genid rdm rdm_mem_boundary mca_caps
    vga stdvga hdtype nographic gfx_passthru serial boot usb usbversion usbdevice vkb_device soundhw
    xen_platform_pci xen_platform_pci_bar_uc vendor_device
    spice spiceport spicetls_port spicehost spicedisable_ticketing spicepasswd spiceagent_mouse spicevdagent
    spice_clipboard_sharing spiceusbredirection spice_image_compression spice_streaming_video
    device_model device_model_args device_model_args_pv device_model_args_hvm
    device_model_override device_model_version device_model_user
    device_model_stubdomain_override device_model_stubdomain_seclabel dm_restrict
    stubdomain_memory stubdomain_kernel stubdomain_cmdline stubdomain_ramdisk
    sdl opengl display xauthority vnclisten vncpasswd vncdisplay vncunused keymap vncviewer
""")
"""Keys of HVM and PVH guests, of the device model, and of the display that only `vnc=1` would make: xl passes over them
for a PV guest, and so do we, but with a warning."""

NOT_BUILT_YET: dict[str, tuple[str, ...]] = dict.fromkeys(
    _words("""
    cpuid vnuma pool cpu_weight cap period slice extratime latency cpus cpus_soft
    bootloader_args bootloader_restrict bootloader_user firmware
    xenstore_quota xenstore_feature_mask driver_domain e820_host tsc_mode localtime rtc_timeoffset
    seclabel init_seclabel passthrough xend_suspend_evtchn_compat
    vif2 vtpm p9 pvcalls vfb vkb vdispl vsnd channel usbctrl usbdev virtio
    pci pci_permissive pci_msitranslate pci_seize pci_power_mgmt dtdev ioports iomem irqs
    altp2m altp2m_count arm_sci device_tree gic_version llc_colors msr_relaxed nr_spis sve tee timer_mode
    trap_unmapped_accesses videoram vmtrace_buf_kb vnc vpmu vuart
    """),
    ("0", ""),
) | {
    "pool": ("Pool-0",),
    "cpu_weight": ("256",),
    "cpus": ("all",),
    "cpus_soft": ("all",),
    "cpuid": ("host",),
    "tsc_mode": ("default", "0"),
    "passthrough": ("disabled",),
    "xenstore_feature_mask": ("-1", "0xffffffff"),
    "altp2m": ("disabled", "0"),
    "pci_msitranslate": ("0", "1"),
    "pci_power_mgmt": ("0", "1"),
    "pci_permissive": ("0", "1"),
    "pci_seize": ("0", "1"),
}
"""Keys xl heeds for a PV guest and xen-py does not yet, with the values that ask for nothing (an empty list always
does)."""

KNOWN = SUPPORTED | WITHOUT_EFFECT_ON_PV | frozenset(NOT_BUILT_YET)


def nearest(key: str) -> str | None:
    """The known key most like `key`, for a warning about a likely slip."""
    close = get_close_matches(key.lower(), sorted(KNOWN), n=1, cutoff=0.6)
    return close[0] if close else None
