# SPDX-License-Identifier: GPL-2.0-only
"""Compile the parts of xen-py that are C: the engine library, and the native guests with their test kernels.

The compiler is always the one in the `ziglang` wheel, so no compiler or header of the machine is needed and the result
is the same everywhere. `setup.py` calls this module for `pip install`; while working on the C, run it directly:

    .venv/bin/python native_build.py

Only what is older than its sources is built again. Caches and objects live under build/ in the source tree.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent
ENGINE = ROOT / "xen_py" / "engine" / "native"
ENGINE_LIBRARY = ENGINE / "libxenpy.so"
GUESTS = ROOT / "domU" / "native"
GUEST_OUTPUT = GUESTS / "build"
WORK = ROOT / "build" / "native"

COMMON_FLAGS = (
    *("-std=c17", "-O2", "-g1", "-Wall", "-Wextra", "-Werror", "-fno-sanitize=undefined"),
    # The same sources give the same files wherever they lie.
    f"-ffile-prefix-map={ROOT}=.",
)

# The oldest glibc whose symbols the library may use: that of Debian 10 and RHEL 8.
ENGINE_TARGET = f"{platform.machine()}-linux-gnu.2.28"

GUEST_FLAGS = (
    *COMMON_FLAGS,
    *("-target", "x86_64-freestanding-none", "-ffreestanding", "-fno-builtin", "-fno-stack-protector", "-fno-pic"),
    # Traps push their frame right below the stack pointer; vector registers are the guest's users' business.
    *("-mno-red-zone", "-mcmodel=kernel", "-mno-mmx", "-mno-sse", "-mno-sse2", "-msoft-float"),
    "-I" + str(GUESTS / "include"),
)
GUEST_LINK_FLAGS = (
    *("-target", "x86_64-freestanding-none", "-nostdlib", "-static", "-fno-sanitize=undefined"),
    *("-Wl,-T," + str(GUESTS / "guest.lds"), "-Wl,--build-id=none", "-Wl,-z,max-page-size=4096"),
)


class BuildError(Exception):
    """A compiler run failed; the message is what it printed."""


def is_stale(output: Path, sources: Iterable[Path]) -> bool:
    """Whether `output` is missing or older than any of `sources` or this file."""
    if not output.exists():
        return True
    built = output.stat().st_mtime_ns
    return any(source.stat().st_mtime_ns > built for source in (*sources, Path(__file__)))


def zig_cc(arguments: Sequence[str | Path], output: Path) -> None:
    """Run `zig cc ... -o output`, which appears whole or not at all."""
    output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = output.with_name(f".{os.getpid()}.{output.name}")
    caches = {name: str(WORK / "zig-cache") for name in ("ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR")}
    command = [sys.executable, "-m", "ziglang", "cc", *map(str, arguments), "-o", str(unfinished)]
    try:
        done = subprocess.run(command, env={**os.environ, **caches}, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise BuildError(f"{output.name}: {done.stderr or done.stdout}")
        unfinished.replace(output)
    finally:
        unfinished.unlink(missing_ok=True)


def build_engine() -> list[Path]:
    """The engine's shared library, if its sources changed; returns what was built."""
    sources = sorted(ENGINE.glob("*.c"))
    if not sources or not is_stale(ENGINE_LIBRARY, [*sources, *ENGINE.glob("*.h")]):
        return []
    flags = ("-target", ENGINE_TARGET, *COMMON_FLAGS, "-fomit-frame-pointer", "-fPIC", "-shared", "-s")
    zig_cc([*flags, *sources], ENGINE_LIBRARY)
    return [ENGINE_LIBRARY]


def build_guests() -> list[Path]:
    """Every program domU/native/*.c and test kernel domU/native/tests/test_*.c, as an ELF of its own."""
    headers = sorted(GUESTS.glob("include/**/*.h"))
    library = [*sorted(GUESTS.glob("lib/*.c")), *sorted(GUESTS.glob("lib/*.S"))]
    harness = GUESTS / "tests" / "harness.c"
    programs = [*sorted(GUESTS.glob("*.c")), *sorted(GUESTS.glob("tests/test_*.c"))]

    def object_of(source: Path) -> Path:
        return WORK / "guest" / source.relative_to(GUESTS).with_suffix(source.suffix + ".o")

    def compile_one(source: Path) -> None:
        if is_stale(object_of(source), [source, *headers]):
            zig_cc([*GUEST_FLAGS, "-c", source], object_of(source))

    def link_one(program: Path) -> Path | None:
        parts = [object_of(part) for part in (program, *library)]
        if program.parent.name == "tests":
            parts.append(object_of(harness))
        output = GUEST_OUTPUT / (program.stem + ".elf")
        if not is_stale(output, [*parts, GUESTS / "guest.lds"]):
            return None
        zig_cc([*GUEST_LINK_FLAGS, *parts], output)
        return output

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, [*library, harness, *programs]))
        return [output for output in pool.map(link_one, programs) if output]


def main() -> int:
    """Build everything that is out of date."""
    try:
        built = [*build_engine(), *build_guests()]
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    for path in built:
        print("built", path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
