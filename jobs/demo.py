"""The whole way on incident reports, told in the terminal.    python -m jobs.demo --out runs/demo"""

import argparse
import socket
from pathlib import Path

from instruct_ray.config_file import load
from instruct_ray.console import Status
from instruct_ray.errors import exit_codes
from instruct_ray.run import write_json
from jobs import runner

CONFIG = Path(__file__).parent / "configs" / "incidents.yaml"


def main() -> None:
    """Run the demo and leave `summary.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for everything the demo makes")
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    arguments = parser.parse_args()
    runner.quiet()
    with exit_codes():
        port = f"serving.port={_free_port()}"
        config = load(arguments.config, [f"run.storage={arguments.out}", port, *arguments.overrides])
        with Status("demo") as status:
            status("loading torch, transformers, Ray and LangChain")
            # Seconds of importing: here, so that they are not silent.
            from jobs import story  # noqa: PLC0415
        summary = story.tell(config, arguments.config)
        write_json(arguments.out / "summary.json", summary)
        print(f"\nsummary -> {arguments.out / 'summary.json'}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
