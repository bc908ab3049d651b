# SPDX-License-Identifier: GPL-2.0-only
"""What pyproject.toml cannot say: compile the C parts before the Python files are gathered, and tag the wheel.

The wheel depends on the machine (it holds a shared library) but on no Python version (the library is used by cffi in
ABI mode), so its tag is py3-none-<platform>.
"""

from __future__ import annotations

import sys
from pathlib import Path

from setuptools import Command, Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build

# A build front end runs this file without the source tree on the import path.
sys.path.insert(0, str(Path(__file__).resolve().parent))

import native_build


class BuildNative(Command):
    """Compile into the source tree, from where package data picks it up (editable installs use it there)."""

    description = "compile the engine library and the native guests"
    user_options: list[tuple[str, str | None, str]] = []  # noqa: RUF012
    editable_mode = False
    build_lib: str | None = None

    def initialize_options(self) -> None:
        pass

    def finalize_options(self) -> None:
        self.set_undefined_options("build", ("build_lib", "build_lib"))

    def run(self) -> None:
        native_build.build_engine()
        native_build.build_guests()

    def get_source_files(self) -> list[str]:
        folders = (native_build.ENGINE, native_build.GUESTS)
        found = [path for folder in folders for path in folder.rglob("*") if path.suffix in {".c", ".h", ".S", ".lds"}]
        return [str(path.relative_to(native_build.ROOT)) for path in found]

    def get_outputs(self) -> list[str]:
        return []

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class NativeDistribution(Distribution):
    """There are no extension modules in Python's sense, but what is built is just as bound to the platform."""

    def has_ext_modules(self) -> bool:
        return True


class PlatformWheel(bdist_wheel):
    """A wheel for this platform and any Python 3."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


build.sub_commands.insert(0, ("build_native", None))
setup(distclass=NativeDistribution, cmdclass={"build_native": BuildNative, "bdist_wheel": PlatformWheel})
