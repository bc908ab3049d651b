# SPDX-License-Identifier: GPL-2.0-only
"""Guests: small kernels in C (`native/`), and guests written in Python as trio code.

A Python guest is a module with a function `main`, named in its configuration:

    kernel = "python:package.module:main"

    async def main(guest: Guest) -> None:
        await guest.console.write(f"hello from domain {guest.domid}\\n")

From the bottom up: `kernel` (the domain, pages, hypercalls), `events` and `grants` (what the hypercalls are for),
`guest` (what a program is given), `runtime` (a program from its start to its end), `frontend` (drivers). All of a guest
is one trio task tree on the one thread that owns its domain.
"""
