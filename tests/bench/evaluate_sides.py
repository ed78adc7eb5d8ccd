"""The two sides of the evaluation benchmark, each in its own process: `evaluate`, and the engine alone.

python -m tests.bench.evaluate_sides evaluate|engine CONFIG.json RESULT.json
"""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from instruct_ray.cli import ray_session
from instruct_ray.config.schema import Config
from instruct_ray.data.open_run import open_run
from instruct_ray.evidence.arms import Arm, LocalModel
from instruct_ray.evidence.asking.latency import NUM_AT_ONCE
from instruct_ray.evidence.asking.local import LocalArm
from instruct_ray.evidence.evaluate import evaluate
from instruct_ray.evidence.plan import make_plan
from instruct_ray.evidence.publish import publish_evidence
from instruct_ray.inference.engine import Engine, generate_all
from instruct_ray.inference.engines import create_engine
from instruct_ray.run.folder import RunFolder


def ignore(text: str) -> None:
    """Show no progress."""


def run_evaluate(config: Config) -> dict[str, Any]:
    """The whole stage on a cluster that runs: plan, engines as actors, answers, latency, statistics, report."""
    ray_session.init_ray()
    start = time.perf_counter()
    evidence = evaluate(config, ignore, lambda: None)
    publish_evidence(config, ignore)
    seconds = time.perf_counter() - start
    ray_session.shut_down_ray()
    arms = evidence.values["arms"].values()
    num_tokens = sum((arm["prompt_tokens"] + arm["completion_tokens"]) * evidence.values["num_test"] for arm in arms)
    return {"seconds": seconds, "num_tokens": round(num_tokens)}


def run_engine(config: Config) -> dict[str, Any]:
    """The engine in this process, with the same prompts and the same latency requests, which it answers as they come.

    Neither the plan nor the imports are timed.
    """
    plan = make_plan(open_run(config, "evaluate"), ignore)
    models = list({arm.model.identity: arm.model for arm in plan.arms}.values())
    start = time.perf_counter()
    num_tokens = sum(_ask_model(model, plan.arms, config) for model in models)
    return {"seconds": time.perf_counter() - start, "num_tokens": num_tokens}


def _ask_model(model: LocalModel, arms: Sequence[Arm], config: Config) -> int:
    engine = create_engine(model.folder, model.renderer.contract, config.serving)
    own = [LocalArm.make(arm, config.evidence, config.evidence_labels) for arm in arms if arm.model is model]
    num_tokens = sum(_ask_arm(engine, arm) for arm in own)
    engine.close()
    return num_tokens


def _ask_arm(engine: Engine, arm: LocalArm) -> int:
    """All prompts of an arm, each once; then the latency requests, one at a time and 8 at once."""
    prompts = sorted(dict(zip(arm.keys, arm.prompts, strict=True)).values(), key=lambda one: len(one.token_ids))
    completions = generate_all(engine, [one.token_ids for one in prompts], [one.sampling for one in prompts])
    timed = [arm.prompts[index] for index in arm.timed]
    for prompt in (timed[0], *timed):
        generate_all(engine, [prompt.token_ids], prompt.sampling)
    generate_all(engine, [one.token_ids for one in timed], [one.sampling for one in timed], num_at_once=NUM_AT_ONCE)
    return sum(len(one.token_ids) + len(done.token_ids) for one, done in zip(prompts, completions, strict=True))


def main() -> None:
    """Run one side and write its result."""
    side, config_file, result_file = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    ray_session.silence_libraries()
    config = Config.model_validate(json.loads(config_file.read_text()))
    result = run_evaluate(config) if side == "evaluate" else run_engine(config)
    result["evidence"] = str(RunFolder.from_config(config).evidence_file)
    result_file.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
