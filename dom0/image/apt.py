# SPDX-License-Identifier: GPL-2.0-only
"""Debian packages without root: apt with directories of its own below our cache.

apt uses the machine's sources, keys and settings for fetching (proxies, certificates), but writes nothing outside the
given directory, and runs none of the hooks that the machine's configuration may hold. It checks what it downloads
against the distribution's signatures, as always. Blocking; one process at a time uses a directory (`locked`).
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from dom0.image.errors import ImageError

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is (0: unknown)."""

_TOOLS = ("apt-get", "apt-cache", "apt-config", "dpkg-deb")
_DEBIAN_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_OWN_SETTINGS = ("Acquire::IndexTargets", "Acquire::Changelogs")
"""Settings below Acquire:: that are built into apt, or make it download more than lists of packages."""


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keep other processes out of apt's directory, which is made if it was not there; waits for them."""
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@attrs.frozen
class Package:
    name: str
    version: str
    depends: tuple[str, ...]
    """Names of the packages it depends on, first alternatives only."""


@attrs.frozen
class Apt:
    """apt that works in `directory`."""

    directory: Path

    @classmethod
    def prepare(cls, directory: Path) -> Apt:
        """Set up apt in `directory`. ImageError where there is no apt."""
        missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
        if missing:
            raise ImageError(
                f"{missing[0]} not found: images are fetched through apt, on Debian and systems derived from it;"
                " elsewhere, name a kernel of your own in the guest's configuration"
            )
        for part in ("state/lists/partial", "cache/archives/partial", "etc", "download"):
            (directory / part).mkdir(parents=True, exist_ok=True)
        (directory / "state" / "status").touch()
        machine = subprocess.run(["apt-config", "dump"], stdin=subprocess.DEVNULL, capture_output=True, check=False)
        kept = [
            line
            for line in machine.stdout.decode("utf-8", "replace").splitlines()
            if line.startswith("Acquire::") and not line.startswith(_OWN_SETTINGS)
        ]
        settings = {
            "APT::Architecture": "amd64",
            "APT::Sandbox::User": "root",
            "Acquire::Languages": "none",
            "Dir::State": directory / "state",
            "Dir::State::status": directory / "state" / "status",
            "Dir::Cache": directory / "cache",
            "Dir::Log": directory / "state",
            "Dir::Etc::Main": "/dev/null",
            "Dir::Etc::Parts": directory / "etc",
            "Dir::Etc::Preferences": "/dev/null",
            "Dir::Etc::PreferencesParts": directory / "etc",
        }
        own = ["#clear APT::Architectures;", 'APT::Architectures { "amd64"; };']
        own += [f'{key} "{value}";' for key, value in settings.items()]
        (directory / "apt.conf").write_text("\n".join([*kept, *own]) + "\n")
        return cls(directory)

    def clean(self) -> None:
        """Throw away what apt has downloaded: its lists alone take 100 MB."""
        for part in ("state", "cache", "download"):
            shutil.rmtree(self.directory / part, ignore_errors=True)

    def use_suite(self, suite: str) -> None:
        """Look for packages in `suite` of the Debian archive this machine uses, instead of the machine's suites.

        To be called between an `update` (which tells which source is Debian's archive) and another one.
        """
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9./_-]{0,63}", suite):
            raise ImageError(f"{suite!r} is not the name of a Debian suite")
        output = self._run("apt-get", "indextargets", "--format", "$(ORIGIN)|$(LABEL)|$(REPO_URI)")
        archives = dict.fromkeys(
            line.split("|")[2] for line in output.splitlines() if line.startswith("Debian|Debian|")
        )
        if not archives:
            raise ImageError(f"cannot fetch {suite}: this machine's apt sources show no Debian archive")
        key = f"[signed-by={_DEBIAN_KEYRING}] " if os.path.exists(_DEBIAN_KEYRING) else ""
        lines = [f"deb {key}{uri} {suite} main" for uri in archives]
        sources = self.directory / "etc" / f"{suite.replace('/', '_')}.list"
        sources.write_text("\n".join(lines) + "\n")
        with open(self.directory / "apt.conf", "a") as file:
            file.write(f'Dir::Etc::SourceList "{sources}";\nDir::Etc::SourceParts "/dev/null";\n')

    def update(self, progress: Progress) -> str:
        """Get the lists of packages; gives what went wrong, if anything.

        A source that cannot be had is no error by itself: the others may have what is looked for.
        """
        return _reason(self._run_with_progress("Getting the list of packages", progress, "apt-get", "update"))

    def show(self, name: str) -> Package:
        """What the archive says about the newest version of a package; ImageError if there is none."""
        output = self._run("apt-cache", "show", "--no-all-versions", name)
        fields = dict(re.findall(r"^([A-Za-z0-9-]+): (.*)$", output.split("\n\n")[0], re.MULTILINE))
        if fields.get("Package") != name:
            raise ImageError(f"package {name} not found through this machine's apt sources")
        depends = (re.match(r"[a-z0-9][a-z0-9+.-]+", word.strip()) for word in fields.get("Depends", "").split(","))
        return Package(name, fields.get("Version", ""), tuple(match[0] for match in depends if match))

    def download(self, package: Package, progress: Progress) -> Path:
        """The package's file; the caller may delete it."""
        place = self.directory / "download"
        for old in place.glob(f"{package.name}_*.deb"):
            old.unlink()
        output = self._run_with_progress(
            f"Downloading {package.name}", progress, "apt-get", "download", f"{package.name}={package.version}"
        )
        files = list(place.glob(f"{package.name}_*.deb"))
        if len(files) != 1:
            why = _reason(output) or "apt gave no reason"
            raise ImageError(f"package {package.name} {package.version} cannot be downloaded: {why}")
        return files[0]

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "APT_CONFIG": str(self.directory / "apt.conf"), "LC_ALL": "C.UTF-8"}

    def _run(self, *command: str) -> str:
        done = subprocess.run(
            command,
            env=self._environment(),
            cwd=self.directory / "download",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        return done.stdout.decode("utf-8", "replace")

    def _run_with_progress(self, what: str, progress: Progress, *command: str) -> str:
        """Run apt and turn its status lines (`dlstatus:1:PERCENT:text`) into progress; gives its error messages."""
        progress(what, 0, 100)
        status_read, status_write = os.pipe()
        with open(self.directory / "errors", "w+b") as errors:
            try:
                process = subprocess.Popen(
                    [command[0], "-o", f"APT::Status-Fd={status_write}", *command[1:]],
                    env=self._environment(),
                    cwd=self.directory / "download",
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                    pass_fds=(status_write,),
                )
            finally:
                os.close(status_write)
            with process, open(status_read, encoding="utf-8", errors="replace") as status:
                try:
                    for line in status:
                        if match := re.match(r"dlstatus:\d+:(\d+)", line):
                            progress(what, int(match[1]), 100)
                except BaseException:
                    process.terminate()
                    raise
            errors.seek(0)
            progress(what, 100, 100)
            return errors.read().decode("utf-8", "replace")


def _reason(errors: str) -> str:
    """The telling line of apt's messages; empty if there is none."""
    lines = [line[2:].strip() for line in errors.splitlines() if line.startswith(("E:", "W:"))]
    return lines[0] if lines else ""
