"""Appends JSON lines to a file in the run's storage from a background thread, so that the storage holds nobody up.

Lines are appended to a spool first, a file on this machine's own disk, and copied to the storage from there. A storage
that is full, fails or does not answer delays only the copy, which is tried again until it succeeds. Where this
machine's disk fails as well, lines stay in memory up to a limit; those beyond it are dropped and counted.

Nothing more is written once another process has taken over the run.
"""

import json
import os
import socket
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from instruct_ray.errors import one_line
from instruct_ray.run.lock import LockTicket, RunLockLostError

MAX_LINES_IN_MEMORY = 10_000
# Of one write to the storage.
MAX_COPY_BYTES = 2**20
RETRY_SECONDS = 1.0
# A write that takes longer is reported.
SLOW_SECONDS = 10.0
# How long `close` waits for the storage.
CLOSE_SECONDS = 10.0


class LineWriter:
    """Appends lines to one file of the storage, in order."""

    def __init__(
        self, target: Path, spool_dir: Path, lock: LockTicket | None, prepare: Callable[[], None] = lambda: None
    ) -> None:
        """Start the thread.

        Args:
            target: The file in the storage. Another process may append to it, but not at the same time.
            spool_dir: A folder on this machine's disk. The spool is removed from it at the end unless it holds lines
                that could not be copied.
            lock: The lock of the run, checked before each write to the storage; None where no other process knows the
                folder.
            prepare: Called in the thread before the first copy, until it raises no `OSError`.
        """
        self._target, self._lock, self._prepare = target, lock, prepare
        self._spool = spool_dir / f"{target.name}-{uuid.uuid4().hex[:12]}"
        self._is_prepared = False
        self._changed = threading.Condition()
        # Lines that are not in the spool yet.
        self._lines: deque[bytes] = deque()
        self._num_dropped = 0
        # Bytes of the spool that are used and that are copied, and the number of lines in between.
        self._spooled_bytes = self._copied_bytes = self._num_spooled = 0
        # The size of the target before a write that failed, perhaps halfway.
        self._size_before: int | None = None
        self._error: OSError | RunLockLostError | None = None
        self._write_started: float | None = None
        self._is_closing = self._is_abandoned = False
        self._thread = threading.Thread(target=self._run, name=f"lines of {target.name}", daemon=True)
        self._thread.start()

    def append(self, values: Mapping[str, Any]) -> None:
        """Append a line. Returns immediately, and never raises an error of the storage."""
        line = (json.dumps(values, ensure_ascii=False) + "\n").encode()
        with self._changed:
            if len(self._lines) < MAX_LINES_IN_MEMORY:
                self._lines.append(line)
            else:
                self._num_dropped += 1
            self._changed.notify()

    @property
    def problem(self) -> str | None:
        """Why lines are not in the storage yet; None if they are, or are being written without delay."""
        error, started = self._error, self._write_started
        if error is not None:
            return f"{self._target} can't be written: {one_line(error)}"
        if started is not None and time.monotonic() - started > SLOW_SECONDS:
            return f"{self._target}: a write takes longer than {SLOW_SECONDS:g} s"
        return None

    def close(self) -> str | None:
        """End the thread after all lines are written, or after CLOSE_SECONDS.

        Returns which lines are not in the storage; None if all are.
        """
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join(CLOSE_SECONDS)
        self._is_abandoned = True
        messages = []
        if num_waiting := self._num_spooled + len(self._lines):
            reason = "no answer" if self._error is None else one_line(self._error)
            where = f", of which {self._num_spooled} are in {self._spool} on {socket.gethostname()}"
            messages.append(f"{num_waiting} line(s) of {self._target} could not be written ({reason}){where}")
        elif not self._thread.is_alive():
            self._spool.unlink(missing_ok=True)
        if self._num_dropped:
            messages.append(f"{self._num_dropped} line(s) of {self._target} are lost: this machine had no room either")
        return "; ".join(messages) or None

    def _run(self) -> None:
        while self._wait_for_work():
            self._spool_lines()
            self._write_started = time.monotonic()
            try:
                self._write_to_storage()
                self._error = None
            except OSError as error:
                self._error = error
            except RunLockLostError as error:
                self._error = error
                return
            self._write_started = None
            if self._error:
                time.sleep(RETRY_SECONDS)

    def _write_to_storage(self) -> None:
        if self._lock is not None:
            self._lock.check()
        if not self._is_prepared:
            self._prepare()
            self._is_prepared = True
        self._copy_lines()

    def _wait_for_work(self) -> bool:
        """Wait until there is something to write; returns False if there is nothing left to do."""

        def is_behind() -> bool:
            return bool(self._lines or self._num_spooled or not self._is_prepared)

        with self._changed:
            self._changed.wait_for(lambda: is_behind() or self._is_closing)
        return is_behind() and not self._is_abandoned

    def _spool_lines(self) -> None:
        """Move the new lines to the spool; they stay in memory if this machine's disk fails."""
        with self._changed:
            lines = list(self._lines)
        if not lines:
            return
        content = b"".join(lines)
        try:
            descriptor = os.open(self._spool, os.O_RDWR | os.O_CREAT, 0o644)
            with open(descriptor, "r+b") as file:
                # Over what a failed write left.
                file.seek(self._spooled_bytes)
                file.write(content)
                file.truncate()
        except OSError:
            return
        self._forget(len(lines))
        self._spooled_bytes += len(content)
        self._num_spooled += len(lines)

    def _copy_lines(self) -> None:
        """Append all waiting lines to the target.

        Raises:
            OSError: the storage, or the spool, failed.
        """
        while self._num_spooled:
            with self._spool.open("rb") as file:
                file.seek(self._copied_bytes)
                lines = file.readlines(MAX_COPY_BYTES)
            # Without what a failed write left at the end.
            content = b"".join(lines)[: self._spooled_bytes - self._copied_bytes]
            self._append_to_target(content)
            self._copied_bytes += len(content)
            self._num_spooled -= content.count(b"\n")
        if self._spooled_bytes:
            # Now, not at the end: this process may be killed at any time.
            self._spool.unlink(missing_ok=True)
            self._spooled_bytes = self._copied_bytes = 0
        # Only where this machine's disk failed.
        with self._changed:
            unspooled = list(self._lines)
        if unspooled:
            self._append_to_target(b"".join(unspooled))
            self._forget(len(unspooled))

    def _forget(self, num_lines: int) -> None:
        with self._changed:
            for _ in range(num_lines):
                self._lines.popleft()

    def _append_to_target(self, content: bytes) -> None:
        """Append whole lines.

        Raises:
            OSError: the storage failed. What it took of them is removed now or, if it fails again, at the next attempt.
        """
        if self._size_before is not None:
            self._remove_partial_write(content)
        try:
            with self._target.open("a+b") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - 1))
                if size and file.read(1) != b"\n":
                    # A line that a killed process did not finish.
                    size += file.write(b"\n")
                self._size_before = size
                file.write(content)
        except OSError:
            with suppress(OSError):
                self._remove_partial_write(content)
            raise
        self._size_before = None

    def _remove_partial_write(self, content: bytes) -> None:
        if self._size_before is None:
            return
        with self._target.open("r+b") as file:
            file.seek(self._size_before)
            # Otherwise another process has appended.
            if content.startswith(file.read()):
                file.truncate(self._size_before)
