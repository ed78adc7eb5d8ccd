"""The demo: every stage on the incident reports, then a question to the endpoint.

python -m jobs.demo --out runs/demo
"""

import argparse
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
        overrides = [f"run.storage={arguments.out}", *arguments.overrides]
        config = load_config(arguments.config, overrides)
        with StatusLine("demo") as status:
            status("loading torch, transformers, Ray and LangChain")
            # Takes seconds, while the status line is shown.
            from instruct_ray.base_model.cpu_precision import is_bf16_fast  # noqa: PLC0415
            from jobs.demo_steps import run_demo  # noqa: PLC0415

        if not is_bf16_fast():
            print("demo: this CPU has no instructions for bf16, so training computes in fp32")
            config = load_config(arguments.config, ["train.precision=fp32", *overrides])
        has_port = any(override.startswith("serving.port=") for override in arguments.overrides)
        summary = run_demo(config, arguments.config, chooses_port=not has_port)
        atomic_write_json(arguments.out / "summary.json", summary)
        print(f"\nsummary -> {arguments.out / 'summary.json'}")


if __name__ == "__main__":
    main()
