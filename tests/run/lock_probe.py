"""One of many processes that take the locks of the same folders at once. Prints JSON: [folders held, clashes].

python -m tests.run.lock_probe FOLDER NUM_FOLDERS    (begins at the time that it reads from a line of stdin)
"""

import json
import os
import sys
import time
from pathlib import Path

from instruct_ray.errors import InputError
from instruct_ray.run.lock import run_lock

SECONDS_PER_FOLDER = 0.3
HOLD_SECONDS = 0.1


def main(folder: Path, num_folders: int) -> None:
    """Take one lock after the other; each process begins with a folder at the same time."""
    print("ready", flush=True)
    start_time = float(sys.stdin.readline())
    num_held = num_clashes = 0
    for number in range(num_folders):
        run = folder / str(number)
        time.sleep(max(0.0, start_time + number * SECONDS_PER_FOLDER - time.time()))
        try:
            with run_lock(run):
                num_held += 1
                # Only one process at a time may be here.
                inside = run / "inside"
                try:
                    os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
                except FileExistsError:
                    num_clashes += 1
                    continue
                time.sleep(HOLD_SECONDS)
                inside.unlink()
        except InputError:
            pass
    print(json.dumps([num_held, num_clashes]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
