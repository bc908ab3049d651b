# SPDX-License-Identifier: GPL-2.0-only
"""Guests to run: getting a distribution's kernel, making an initramfs. Nothing here needs root or a domain."""
