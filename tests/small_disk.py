"""A small file system of its own, so that a test can fill it: a tmpfs, for which this process must be root."""

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class NoSmallDiskError(RuntimeError):
    """This process may not mount a file system. The message says why."""


@contextmanager
def small_disk(folder: Path, num_bytes: int) -> Iterator[Path]:
    """Mount a file system of `num_bytes` at a new folder inside the block.

    Raises:
        NoSmallDiskError: this process may not.
    """
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else error
        raise NoSmallDiskError(f"no file system can be mounted here ({reason})") from None
    try:
        yield folder
    finally:
        # Lazily: a process that was killed may still be ending.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill_disk(folder: Path) -> Path:
    """Fill the disk of a folder to the last byte; returns the file to remove to have room again."""
    filler = folder / "filler"
    with filler.open("ab", buffering=0) as file:
        for size in (2**16, 2**12, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue
    return filler


class DiskFiller:
    """Keeps the disk of a folder full from `start` to `stop`, also when other files are removed from it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._keep_full, daemon=True)

    def start(self) -> None:
        """Fill the disk, and keep it full in a background thread."""
        fill_disk(self._folder)
        self._thread.start()

    def stop(self) -> None:
        """Make room again."""
        self._stopped.set()
        self._thread.join()
        (self._folder / "filler").unlink()

    def _keep_full(self) -> None:
        while not self._stopped.wait(0.05):
            fill_disk(self._folder)
