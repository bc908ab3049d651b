# SPDX-License-Identifier: GPL-2.0-only
"""A device that says everything back: the worked example of docs/write-a-driver.md."""
