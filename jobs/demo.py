"""The demo: every stage on the incident reports, then a question to the endpoint.

python -m jobs.demo --out runs/demo
"""

import argparse
import socket
from pathlib import Path

from instruct_ray.cli.ray_session import silence_libraries
from instruct_ray.config.load import load_config
from instruct_ray.console import StatusLine
from instruct_ray.errors import exit_codes
from instruct_ray.files import atomic_write_json

CONFIG = Path(__file__).parent / "configs" / "incidents.yaml"


def main() -> None:
    """Run the demo and write `summary.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for all output of the demo")
    parser.add_argument("--config", type=Path, default=CONFIG, help="YAML file (default: %(default)s)")
    parser.add_argument(
        "overrides", nargs="*", metavar="SECTION.KEY=VALUE", help="values that replace those of the file"
    )
    # Overrides may come before, between and after the options.
    arguments = parser.parse_intermixed_args()
    silence_libraries()
    with exit_codes():
        port = f"serving.port={_free_port()}"
        config = load_config(arguments.config, [f"run.storage={arguments.out}", port, *arguments.overrides])
        with StatusLine("demo") as status:
            status("loading torch, transformers, Ray and LangChain")
            from jobs.demo_steps import run_demo  # noqa: PLC0415  (takes seconds, while the status line is shown)

        summary = run_demo(config, arguments.config)
        atomic_write_json(arguments.out / "summary.json", summary)
        print(f"\nsummary -> {arguments.out / 'summary.json'}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
