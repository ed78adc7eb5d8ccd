"""Takes one architecture through all stages with one method of tuning.

`prepare` is the stage itself. The others run in this process: the driver's checks and the worker's parts of `tune`, the
prompts and the engine actor's class of `evaluate`, the worker of `generate`, and the replica of the endpoint. What Ray
adds to them does not depend on the architecture, and starting its processes for each of them would take hours.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from instruct_ray.config.schema import Config
from instruct_ray.data.open_run import OpenRun, open_run
from instruct_ray.data.prepare.pipeline import prepare
from instruct_ray.data.rendering.renderer import load_renderer
from instruct_ray.data.sources.triple import Triple
from instruct_ray.errors import InputError
from instruct_ray.evidence.arms import Additions, check_prompts_fit, make_arms
from instruct_ray.evidence.examples import choose_examples, load_candidates
from instruct_ray.evidence.limits import limit_answers
from instruct_ray.evidence.plan import make_local_model
from instruct_ray.inference.engine import Completion
from instruct_ray.inference.engine_actor import EngineActor
from instruct_ray.inference.engines import create_engine
from instruct_ray.inference.offline.inputs import InputRow
from instruct_ray.inference.offline.worker import GenerationWorker
from instruct_ray.serving.answer import answer
from instruct_ray.serving.chat_request import ChatRequest
from instruct_ray.serving.loaded_version import LoadedVersion
from instruct_ray.serving.replica_messages import ReplicaChunk, VersionInfo
from instruct_ray.training.capacity.model_sizer import ModelSizer
from instruct_ray.training.distributed.engine import DeepSpeedEngine
from instruct_ray.training.driver.build_spec import build_plan, build_worker_spec
from instruct_ray.training.driver.model_folder import assemble_model_dir
from instruct_ray.training.export.exporter import Exporter
from instruct_ray.training.export.formats import export_format
from instruct_ray.training.model.load import DTYPES, load_model
from instruct_ray.training.model.output_head import find_unchunkable_head
from instruct_ray.training.model.packing_check import resolve_packing_mode
from instruct_ray.training.worker.spec import WorkerSpec
from instruct_ray.training.worker.step import make_loss_fn
from tests import tiny
from tests.fakes import ray_is_running

METHODS: dict[str, dict[str, Any]] = {
    "full": {},
    "LoRA": {"lora": {"rank": 4}},
    "merge": {"lora": {"rank": 4, "merge": True}},
}
CPU = torch.device("cpu")
NUM_STEPS = 2
# Different lengths, so that a batch of them is padded.
ROWS = [
    Triple("a", "How bad is it?", "the shop is down in room 7, and all data was deleted", ""),
    Triple("b", "Rate this.", "nice logo", ""),
    Triple("c", "Rate: x", "", ""),
]


def configure(folder: Path, base: Path, method: str) -> Config:
    """A run with one worker."""
    triples = tiny.write_triples(folder / "triples.jsonl")
    return tiny.configure(
        folder / "runs",
        base,
        triples,
        run={"name": method},
        model=METHODS[method],
        # In fp32 an answer must be the same in any batch.
        train={"zero_stage": 0, "examples_per_step": 8, "precision": "fp32"},
        evidence={"max_new_tokens": 4, "num_few_shot": 1},
        serving={"max_new_tokens": 4},
    )


def run_stages(config: Config) -> str:
    """Take a run from rows to an answer of the endpoint's replica; returns how it ended.

    Returns:
        "packed" or "padded", how the model was trained; or "refused: " and the sentence of the refusal, if it was
        refused before training.
    """
    try:
        prepare(config, ray_is_running)
        run = open_run(config, "tune")
        spec = build_worker_spec(run, config, run.folder, build_plan(config, run.packs))
        sizer = ModelSizer.from_packs(
            run.hf_config, spec.packing_incompatibility, run.packs, config.train, spec.token_ids
        )
        size = sizer.compute_size(config.model.lora, config.train)
    except InputError as error:
        return f"refused: {error}"
    assert size.activation_bytes > 0
    how = train(run, spec)
    assemble_model_dir(run, spec, None)
    renderer = load_renderer(run.folder.model_dir)
    answers = [renderer.decode(answer.token_ids) for answer in answer_all_arms(run)]
    assert generate_offline(config, run.folder.model_dir) == answers
    assert ask_endpoint(config, run.folder.model_dir) == answers
    return how


def train(run: OpenRun, spec: WorkerSpec) -> str:
    """Train a few steps and export the model, which is read back and compared; returns "packed" or "padded"."""
    dtype = DTYPES[spec.train.precision]
    check = resolve_packing_mode(
        spec.base_dir, run.hf_config, spec.packs_dir, spec.packing_incompatibility, spec.packing_check_file, CPU
    )
    attention = check.attn_implementation
    engine = DeepSpeedEngine(
        spec.train, 1, 1, lambda: load_model(spec.base_dir, spec.lora, spec.train, dtype, 0, attention)
    )
    in_chunks = find_unchunkable_head(run.hf_config, engine.model) is None
    compute_loss = make_loss_fn(run.hf_config, check, dtype, in_chunks=in_chunks)
    losses = []
    for _ in range(NUM_STEPS):
        loss, _ = compute_loss(engine.model, run.packs.take([0])[0], CPU)
        engine.backward(loss / 100)
        engine.step(1e-3)
        losses.append(loss.item())
    assert losses[1] < losses[0], losses
    exporter = Exporter(
        base_dir=spec.base_dir,
        hf_config=run.hf_config,
        packs_dir=spec.packs_dir,
        weights_dir=spec.weights_dir,
        check_file=spec.export_check_file,
        format=export_format(spec.lora),
        attn_implementation=attention,
        is_quantized=False,
        rank=0,
    )
    assert exporter.export(engine).problem is None, exporter.export(engine).problem
    return check.path


def answer_all_arms(run: OpenRun) -> list[Completion]:
    """Answer the questions with every arm, in a batch and alone; returns the tuned model's answers."""
    renderer = load_renderer(run.folder.model_dir)
    evidence = run.config.evidence
    models = [
        make_local_model(name, folder, renderer)
        for name, folder in (("base", run.base_model.folder), ("tuned", run.folder.model_dir))
    ]
    additions = Additions(choose_examples(load_candidates(run), ROWS, evidence))
    arms, _ = make_arms(models[0], models[1], ROWS, additions, evidence)
    check_prompts_fit(arms, ROWS)
    completions: list[Completion] = []
    for arm in arms:
        actor = EngineActor(arm.model.folder, renderer.contract, run.config.serving)
        limits = limit_answers(arm.prompts, arm.model.context, evidence.max_new_tokens)
        completions, _ = actor.generate(arm.prompts, limits)
        alone = [actor.generate([prompt], [limit])[0][0] for prompt, limit in zip(arm.prompts, limits, strict=True)]
        assert completions == alone, arm.name
    return completions


def generate_offline(config: Config, model_dir: Path) -> list[str]:
    """Answer the questions as `generate` does."""
    worker = GenerationWorker(model_dir, model_dir, config.serving)
    records = worker.generate([InputRow(row.id, "rows", 0, row) for row in ROWS])
    return [str(record.answer) for record in records]


def ask_endpoint(config: Config, model_dir: Path) -> list[str]:
    """Ask the questions as the replica of an endpoint answers them."""
    renderer = load_renderer(model_dir)
    engine = create_engine(model_dir, renderer.contract, config.serving)
    info = VersionInfo(
        name="sweep",
        version="1",
        contract_digest=renderer.contract.digest,
        data_digest=None,
        max_context=engine.max_context,
        layout=renderer.contract.layout,
    )
    loaded = LoadedVersion(info, renderer, engine)
    answers = [asyncio.run(_ask(loaded, renderer.chat(row), config.serving.max_new_tokens)) for row in ROWS]
    engine.close()
    return answers


async def _ask(loaded: LoadedVersion, messages: Sequence[Any], max_new_tokens: int) -> str:
    request = ChatRequest.model_validate({"model": "sweep", "messages": messages, "temperature": 0, "max_tokens": 4})
    chunks = [chunk async for chunk in answer(loaded, request, max_new_tokens)]
    assert isinstance(chunks[-1], ReplicaChunk), chunks
    assert chunks[-1].finish_reason in ("stop", "length"), chunks
    return "".join(chunk.text for chunk in chunks if isinstance(chunk, ReplicaChunk))
