# SPDX-License-Identifier: GPL-2.0-only
"""`xl`: only the command line; everything else is asked of the host process."""
