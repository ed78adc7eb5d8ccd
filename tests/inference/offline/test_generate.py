"""Offline generation: one output line per input row, the same answers as from the engine, and no lost work."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from instruct_ray.config.schema import Config
from instruct_ray.config.serving import ServingConfig
from instruct_ray.data.rendering.derive_contract import derive_renderer
from instruct_ray.data.rendering.renderer import load_renderer
from instruct_ray.data.sources import files as source_files
from instruct_ray.data.sources.files import find_source_files, split_into_chunks
from instruct_ray.errors import InputError
from instruct_ray.inference.engine import SamplingParams, generate_all
from instruct_ray.inference.engines import create_engine
from instruct_ray.inference.loading import model_digest
from instruct_ray.inference.offline import inputs
from instruct_ray.inference.offline.generate import generate
from instruct_ray.inference.offline.inputs import BATCH_ROWS, InputBatch, split_into_batches
from instruct_ray.inference.offline.manifest import MANIFEST_FILE
from instruct_ray.run.folder import MODEL_METADATA_FILE
from tests.fakes import fail_if_ray_starts, ignore_status, ray_is_running

NUM_NEW_TOKENS = 6
MAX_CONTEXT = 512
# Rows that lack something, and the reason if they get no answer.
IRREGULAR_ROWS: list[tuple[bytes, str | None]] = [
    (b'{"instruction": "Rate this.", "input": "no output"}\n', None),
    (b'{"instruction": "Rate this.", "output": 7}\n', None),
    (b'{"instruction": "", "input": "no instruction"}\n', "empty_field"),
    (b'{"messages": [{"role": "user", "content": "How bad is it?"}]}\n', None),
    (b'{"messages": [{"role": "user", "content": "Rate"}, {"role": "assistant", "content": ""}]}\n', None),
    (b'{"instruction": "half a row\n', "not_json"),
    (b"\xff\xfe\n", "not_utf8"),
    (b'["a", "list"]\n', "not_an_object"),
    (
        json.dumps({"id": "long", "instruction": "Rate this.", "input": "down " * 700}).encode() + b"\n",
        "too_long",
    ),
]


@pytest.fixture
def model_dir(tmp_path: Path, base_folder: Path) -> Path:
    """The tiny base model as a model folder, with its contract."""
    folder = Path(shutil.copytree(base_folder, tmp_path / "model"))
    derive_renderer(base_folder, None).contract.save(folder / "contract.json")
    return folder


@pytest.fixture
def rows_file(tmp_path: Path, triples_file: Path) -> Path:
    """The irregular rows, followed by the triples."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"".join(line for line, _ in IRREGULAR_ROWS) + triples_file.read_bytes())
    return path


@pytest.fixture
def config(make_config: Callable[..., Config], rows_file: Path) -> Config:
    """Reads `rows_file`."""
    return make_config(data={"sources": [rows_file]}, serving={"max_new_tokens": NUM_NEW_TOKENS, "num_replicas": 2})


def read_output(output_dir: Path) -> list[dict[str, Any]]:
    parts = sorted(output_dir.glob("part-*"))
    return [json.loads(line) for part in parts for line in part.open(encoding="utf-8")]


def modification_times(paths: list[Path]) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in paths}


@pytest.mark.usefixtures("ray_4_cpus")
def test_answers_equal_those_of_the_engine(config: Config, model_dir: Path, rows_file: Path, tmp_path: Path) -> None:
    output_dir = tmp_path / "answers"
    manifest, already_done = generate(config, model_dir, output_dir, ignore_status, ray_is_running)
    assert not already_done
    records = read_output(output_dir)
    rows = rows_file.read_bytes().splitlines(keepends=True)
    offsets = [0]
    for row in rows:
        offsets.append(offsets[-1] + len(row))
    # One line per row, in the order of the rows.
    assert [record["offset"] for record in records] == offsets[:-1]
    assert manifest.num_rows == len(records) == sum((manifest.counts or {}).values())
    assert manifest.counts == Counter(record["finish_reason"] or record["reason"] for record in records)

    renderer = load_renderer(model_dir)
    engine = create_engine(model_dir, renderer.contract, ServingConfig())
    assert engine.max_context == MAX_CONTEXT
    irregular = records[: len(IRREGULAR_ROWS)]
    assert [record["reason"] for record in irregular] == [reason for _, reason in IRREGULAR_ROWS]
    assert "not UTF-8" in irregular[6]["detail"]
    assert irregular[8]["prompt_tokens"] > MAX_CONTEXT

    for record, row in zip(records[len(IRREGULAR_ROWS) :], rows[len(IRREGULAR_ROWS) :], strict=True):
        triple = json.loads(row)
        prompt = renderer.prompt(renderer.messages(triple["instruction"], triple["input"]))
        [completion] = generate_all(engine, [prompt], SamplingParams(NUM_NEW_TOKENS))
        assert record["answer"] == renderer.tokenizer.decode(completion.token_ids, skip_special_tokens=True)
        assert (record["id"], record["finish_reason"]) == (triple["id"], completion.finish_reason)
        assert (record["prompt_tokens"], record["completion_tokens"]) == (len(prompt), len(completion.token_ids))
    engine.close()

    # A second call changes nothing.
    before = modification_times(list(output_dir.iterdir()))
    second_manifest, already_done = generate(config, model_dir, output_dir, ignore_status, fail_if_ray_starts)
    assert (second_manifest, already_done) == (manifest, True)
    assert before == modification_times(list(output_dir.iterdir()))


def test_batches_contain_every_row_once_and_in_order(
    config: Config, rows_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(source_files, "CHUNK_BYTES", 2000)
    monkeypatch.setattr(inputs, "BATCH_ROWS", 10)
    chunks = split_into_chunks(find_source_files(config.data.sources, tmp_path))
    assert len(chunks) > 3
    batches = [batch for chunk in chunks for batch in split_into_batches(chunk, config.data)]
    assert [batch.part_name for batch in batches] == sorted(batch.part_name for batch in batches)
    assert max(len(batch.rows) for batch in batches) == 10
    assert [InputBatch.load(batch.dump()) for batch in batches] == batches
    offsets = [row.offset for batch in batches for row in batch.rows]
    assert offsets == sorted(offsets)
    assert len(offsets) == len(rows_file.read_bytes().splitlines())


def test_output_of_another_model_input_or_limit_is_rejected(
    config: Config, model_dir: Path, rows_file: Path, tmp_path: Path
) -> None:
    output_dir = tmp_path / "answers"

    def generate_without_ray(config: Config) -> None:
        generate(config, model_dir, output_dir, ignore_status, fail_if_ray_starts)

    # Writes the manifest, which binds the folder to its spec, and fails where Ray would start.
    with pytest.raises(AssertionError):
        generate_without_ray(config)
    spec = json.loads((output_dir / MANIFEST_FILE).read_text())["request"]
    longer = config.model_copy(update={"serving": config.serving.model_copy(update={"max_new_tokens": 7})})
    with pytest.raises(InputError, match="max_new_tokens was 6, now 7"):
        generate_without_ray(longer)

    rows = rows_file.read_bytes()
    rows_file.write_bytes(rows + rows)
    with pytest.raises(InputError, match=rf"input_digest was {spec['input_digest'][:12]}, now [0-9a-f]{{12}}"):
        generate_without_ray(config)
    rows_file.write_bytes(rows)

    weights_file = model_dir / "model.safetensors"
    changed_weights = {name: tensor + 1 for name, tensor in load_file(weights_file).items()}
    save_file(changed_weights, weights_file, {"format": "pt"})
    with pytest.raises(InputError, match=rf"model_digest was {spec['model_digest'][:12]}, now [0-9a-f]{{12}}"):
        generate_without_ray(config)


def test_unusable_model_input_or_output_is_rejected_before_ray_starts(
    make_config: Callable[..., Config], config: Config, model_dir: Path, base_folder: Path, tmp_path: Path
) -> None:
    unused_dir = tmp_path / "unused"

    def error_message(config: Config, model_dir: Path = model_dir, output_dir: Path = unused_dir) -> str:
        with pytest.raises(InputError) as error:
            generate(config, model_dir, output_dir, ignore_status, fail_if_ray_starts)
        return str(error.value)

    assert "no contract here" in error_message(config, model_dir=base_folder)
    cut_model = Path(shutil.copytree(model_dir, tmp_path / "cut"))
    os.truncate(cut_model / "model.safetensors", 5000)
    assert "has 5,000 bytes, its header says" in error_message(config, model_dir=cut_model)
    renamed_columns = tmp_path / "renamed.jsonl"
    renamed_columns.write_text('{"question": "How bad is it?"}\n' * 3)
    message = error_message(make_config(data={"sources": [renamed_columns]}))
    first_error = f"{renamed_columns}: row 1 has no instruction, only 'question'"
    assert f"none of the first 3 rows can be read; {first_error}" in message
    full_dir = tmp_path / "full"
    full_dir.mkdir()
    (full_dir / "thesis.txt").touch()
    assert "holds other files than answers" in error_message(config, output_dir=full_dir)
    assert "not a URI" in error_message(config, output_dir=Path("s3://bucket/answers"))
    assert not unused_dir.exists()


def start_job(config: Config, tmp_path: Path, *arguments: object) -> subprocess.Popen[str]:
    config_file = tmp_path / "config.yaml"
    config_file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    command = [sys.executable, "-m", "jobs.generate", "--config", str(config_file), *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def kill_a_worker(job: subprocess.Popen[str]) -> None:
    """Wait for the first generation worker of a job and kill it."""
    while True:
        assert job.poll() is None, job.communicate()[0]
        for process in psutil.Process(job.pid).children(recursive=True):
            # Ray puts the name of the actor's class into the command line.
            command_line = " ".join(process.cmdline()) if process.status() != psutil.STATUS_ZOMBIE else ""
            if "GenerationWorker" in command_line:
                process.kill()
                return
        time.sleep(0.05)


@pytest.mark.slow
def test_killed_job_resumes_with_the_missing_parts(
    make_config: Callable[..., Config], model_dir: Path, triples_file: Path, tmp_path: Path
) -> None:
    num_rows = 64 * 40
    rows_file = tmp_path / "many.jsonl"
    rows_file.write_bytes(triples_file.read_bytes() * 40)
    config = make_config(serving={"max_new_tokens": 24, "max_batch_size": 4})
    output_dir = tmp_path / "answers"
    arguments = ("--model", model_dir, "--input", rows_file, "--output", output_dir)
    job = start_job(config, tmp_path, *arguments)
    deadline = time.monotonic() + 240
    while len(list(output_dir.glob("part-*"))) < 3:
        assert job.poll() is None, job.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(job.pid, signal.SIGKILL)
    job.communicate()
    committed = modification_times(list(output_dir.glob("part-*")))
    assert 3 <= len(committed) < num_rows // BATCH_ROWS

    job = start_job(config, tmp_path, *arguments)
    kill_a_worker(job)
    output, _ = job.communicate(timeout=240)
    assert job.returncode == 0, output
    assert f"generated: {num_rows:,} rows" in output
    assert len(read_output(output_dir)) == num_rows
    # A subset, because the worker of the killed job may have committed another part after its driver was killed.
    assert committed.items() <= modification_times(list(output_dir.glob("part-*"))).items()
    assert not list(output_dir.glob(".part-*"))


def test_adapter_digest_covers_its_base_but_not_the_path_of_the_base(base_folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    base_model = AutoModelForCausalLM.from_pretrained(base_folder)
    adapter_dir = tmp_path / "adapter"
    get_peft_model(base_model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(adapter_dir)
    config_file = adapter_dir / "adapter_config.json"
    adapter_config = json.loads(config_file.read_text())

    def digest(base_dir: Path, rank: int, base_digest: str) -> str:
        config_file.write_text(json.dumps(adapter_config | {"base_model_name_or_path": str(base_dir), "r": rank}))
        (adapter_dir / MODEL_METADATA_FILE).write_text(json.dumps({"base_digest": base_digest}))
        return model_digest(adapter_dir)

    original = digest(base_folder, 2, "a")
    assert digest(tmp_path, 2, "a") == original
    assert len({original, digest(base_folder, 3, "a"), digest(base_folder, 2, "b")}) == 3
    with pytest.raises(InputError, match="base model is expected in /nowhere"):
        digest(Path("/nowhere"), 2, "a")
