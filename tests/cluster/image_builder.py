"""Builds and runs images with buildah, as root but without a daemon, on a base image that is made here."""

import ast
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from tests.cluster.manifests import ROOT

PROGRAMS = ("buildah", "debootstrap")
DEBIAN = "bookworm"
PACKAGES = ("python3", "python3-venv", "ca-certificates")
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
# pip's settings that say where packages are.
PIP_KEYS = ("index-url", "extra-index-url", "find-links", "cert")
# As the images rayproject/ray: user `ray` of the group `users`, with a Python of its own that is first on the path.
BASE_FILE = f"""
FROM scratch
COPY rootfs /
COPY ca-certificates.crt {CERTIFICATES}
COPY pip.conf /etc/pip.conf
RUN useradd --uid 1000 --gid 100 --create-home ray && python3 -m venv /home/ray/venv && chown -R ray:users /home/ray
ENV PATH=/home/ray/venv/bin:/usr/local/bin:/usr/bin:/bin HOME=/home/ray
USER 1000
WORKDIR /home/ray
"""
BUILD_SECONDS = 1500


def why_not() -> str | None:
    """Why no image can be built here; None if one can."""
    if os.getuid() != 0:
        return "needs root"
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    return f"needs {' and '.join(missing)}: `apt-get install {' '.join(missing)}`" if missing else None


class ImageBuilder:
    """Images in a storage of their own, which `close` removes: gigabytes."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="images-"))
        storage = [f"--root={self._folder}/root", f"--runroot={self._folder}/run"]
        self._command = ["buildah", "--storage-driver=vfs", *storage]

    def build_base(self, tag: str) -> None:
        """Make an image of Debian with Python 3.11 alone, in which pip finds packages as on this machine."""
        context = self._folder / "base"
        context.mkdir()
        run(["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", DEBIAN, str(context / "rootfs")])
        shutil.copy(CERTIFICATES, context)
        settings = pip_settings()
        lines = [f"{key} = {value}" for key, value in settings.items()]
        (context / "pip.conf").write_text("\n".join(["[global]", *lines, ""]))
        (context / "Containerfile").write_text(BASE_FILE)
        self._run("bud", "--isolation=chroot", f"--tag={tag}", str(context))
        shutil.rmtree(context)

    def build(self, file: Path, tag: str, arguments: Mapping[str, str]) -> None:
        """Build an image from the root of the repository."""
        options = [f"--build-arg={name}={value}" for name, value in arguments.items()]
        options += [f"--volume={folder}:{folder}:ro" for folder in package_folders(pip_settings())]
        self._run("bud", "--isolation=chroot", *options, f"--file={file}", f"--tag={tag}", str(ROOT))

    def inspect(self, tag: str, template: str) -> str:
        """A part of an image's configuration, by a Go template."""
        return self._run("inspect", "--type=image", f"--format={template}", tag).strip()

    def start(self, tag: str) -> str:
        """Make a container of an image, in which `run_in` runs commands; returns its name."""
        return self._run("from", "--pull-never", tag).strip()

    def run_in(self, container: str, *command: str) -> str:
        """Run a command in a container as the image's user; returns what it printed."""
        return self._run("run", "--isolation=chroot", container, "--", *command)

    def close(self) -> None:
        """Remove containers, images and the storage."""
        try:
            self._run("rm", "--all")
        finally:
            shutil.rmtree(self._folder)

    def _run(self, *arguments: str) -> str:
        return run([*self._command, *arguments])


def run(command: Sequence[str]) -> str:
    """Run a program; returns its standard output. A failure shows the end of all that it printed."""
    result = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False)
    assert result.returncode == 0, (result.stdout + result.stderr)[-5000:]
    return result.stdout


def pip_settings() -> dict[str, str]:
    """Where pip looks for packages on this machine."""
    lines = run([sys.executable, "-m", "pip", "config", "list"]).splitlines()
    pairs = [line.split("=", 1) for line in lines if line.startswith(("global.", ":env:.", "install."))]
    settings = {key.rpartition(".")[2]: ast.literal_eval(value) for key, value in pairs}
    # The certificates are copied to this path.
    found = {key: str(settings[key]) for key in PIP_KEYS if key in settings}
    return found | ({"cert": str(CERTIFICATES)} if "cert" in found else {})


def package_folders(settings: Mapping[str, str]) -> list[str]:
    """The folders of this machine among pip's settings, to be mounted in a build."""
    places = [place for key in PIP_KEYS[:3] for place in settings.get(key, "").split()]
    # The pages of an index refer to files beside its folder.
    indexes = [str(Path(urlsplit(place).path).parent) for place in places if place.startswith("file:")]
    return sorted({*indexes, *(place for place in places if place.startswith("/"))})
