"""A process with a vLLM engine, which a test kills: prints `ready` after the first answer."""

import sys
import time
from pathlib import Path

from instruct_ray.config.serving import ServingConfig
from instruct_ray.data.rendering.derive_contract import derive_renderer
from instruct_ray.inference.engine import SamplingParams, generate_all
from instruct_ray.inference.engines import create_engine

# vLLM's processes import this module again.
if __name__ == "__main__":
    folder = Path(sys.argv[1])
    serving = ServingConfig(engine="vllm", kv_cache_bytes=2**26)
    engine = create_engine(folder, derive_renderer(folder, None).contract, serving)
    generate_all(engine, [[5, 6, 7]], SamplingParams(2))
    print("ready", flush=True)
    time.sleep(600)
