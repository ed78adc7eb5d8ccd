"""Answers to a file of rows: those of the engine asked alone, one line a row, and none lost to a kill."""

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
from instruct_ray.data.rendering.derive_contract import derive_renderer
from instruct_ray.data.rendering.renderer import load_renderer
from instruct_ray.data.sources import files as sources
from instruct_ray.data.sources.files import find_source_files, split_into_chunks
from instruct_ray.errors import InputError
from instruct_ray.inference.engine import SamplingParams, generate_all
from instruct_ray.inference.loading import model_digest
from instruct_ray.inference.offline import inputs as questions
from instruct_ray.inference.offline.generate import MANIFEST_FILE, generate
from instruct_ray.inference.offline.inputs import BATCH_ROWS, InputBatch, split_into_batches
from instruct_ray.inference.transformers_engine import TransformersEngine
from instruct_ray.run.folder import MODEL_METADATA_FILE
from tests.fakes import never_start, no_start, say_nothing

NUM_NEW_TOKENS = 6
# Each kind of row that gets no answer, or gets one in spite of what it lacks.
ODD_ROWS = [
    b'{"instruction": "Rate this.", "input": "no answer given"}\n',
    b'{"instruction": "Rate this.", "output": 7}\n',
    b'{"instruction": "", "input": "nothing asked"}\n',
    b'{"messages": [{"role": "user", "content": "How bad is it?"}]}\n',
    b'{"messages": [{"role": "user", "content": "Rate"}, {"role": "assistant", "content": ""}]}\n',
    b'{"instruction": "half a row\n',
    b"\xff\xfe\n",
    b'["a", "list"]\n',
    json.dumps({"id": "long", "instruction": "Rate this.", "input": "down " * 700}).encode() + b"\n",
]


@pytest.fixture
def model(tmp_path: Path, base_folder: Path) -> Path:
    """The tiny base as a model folder, with its contract."""
    folder = Path(shutil.copytree(base_folder, tmp_path / "model"))
    derive_renderer(base_folder, None).contract.save(folder / "contract.json")
    return folder


@pytest.fixture
def rows_file(tmp_path: Path, triples_file: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"".join(ODD_ROWS) + triples_file.read_bytes())
    return path


@pytest.fixture
def asked(make_config: Callable[..., Config], rows_file: Path) -> Config:
    return make_config(data={"sources": [rows_file]}, serving={"max_new_tokens": NUM_NEW_TOKENS, "num_replicas": 2})


def lines_of(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for part in sorted(output.glob("part-*")) for line in part.open(encoding="utf-8")]


def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "PART_ROWS", 10)


@pytest.mark.usefixtures("ray_4_cpus")
def test_answers_are_those_of_the_engine_asked_alone(asked: Config, model: Path, tmp_path: Path) -> None:
    output = tmp_path / "answers"
    generated, already_done = generate(asked, model, output, say_nothing, no_start)
    assert not already_done
    lines = lines_of(output)
    content = asked.data.sources[0].path
    offsets = [0]
    for line in Path(content).read_bytes().splitlines(keepends=True):
        offsets.append(offsets[-1] + len(line))
    # One line for every row, in the rows' order.
    assert [line["offset"] for line in lines] == offsets[:-1]
    assert generated.num_rows == len(lines) == sum((generated.counts or {}).values())
    assert generated.counts == Counter(line["finish_reason"] or line["reason"] for line in lines)
    assert [line["reason"] for line in lines[: len(ODD_ROWS)]] == [
        None, None, "empty_field", None, None, "not_json", "not_utf8", "not_an_object", "too_long",
    ]  # fmt: skip
    assert "not UTF-8" in lines[6]["detail"]
    assert lines[8]["prompt_tokens"] > 512 == TransformersEngine(model, load_renderer(model).contract, 1).max_context

    renderer = load_renderer(model)
    engine = TransformersEngine(model, renderer.contract, 1)
    for line, row in zip(lines[len(ODD_ROWS) :], Path(content).read_bytes().splitlines()[len(ODD_ROWS) :], strict=True):
        values = json.loads(row)
        prompt = renderer.prompt(renderer.messages(values["instruction"], values["input"]))
        [alone] = generate_all(engine, [prompt], SamplingParams(NUM_NEW_TOKENS))
        assert line["answer"] == renderer.tokenizer.decode(alone.token_ids, skip_special_tokens=True)
        assert (line["id"], line["finish_reason"]) == (values["id"], alone.finish_reason)
        assert (line["prompt_tokens"], line["completion_tokens"]) == (len(prompt), len(alone.token_ids))

    before = {path: path.stat().st_mtime_ns for path in output.iterdir()}
    again, already_done = generate(asked, model, output, say_nothing, never_start)
    assert (again, already_done) == (generated, True)
    assert before == {path: path.stat().st_mtime_ns for path in output.iterdir()}


def test_parts_are_the_same_rows_however_they_are_cut(
    asked: Config, rows_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sources, "CHUNK_BYTES", 2000)
    small_parts(monkeypatch)
    found = split_into_chunks(find_source_files(asked.data.sources, tmp_path))
    assert len(found) > 3
    made = [part for chunk in found for part in split_into_batches(chunk, asked.data)]
    assert [part.name for part in made] == sorted(part.name for part in made)
    assert max(len(part.questions) for part in made) == 10
    assert [InputBatch.load(part.dump()) for part in made] == made
    offsets = [question.offset for part in made for question in part.questions]
    assert offsets == sorted(offsets)
    assert len(offsets) == len(rows_file.read_bytes().splitlines())


def test_another_model_input_or_length_is_refused_by_digest(asked: Config, model: Path, tmp_path: Path) -> None:
    output = tmp_path / "answers"
    with pytest.raises(AssertionError):
        # Refused to start Ray: the folder belongs to the request from here on.
        generate(asked, model, output, say_nothing, never_start)
    before = json.loads((output / MANIFEST_FILE).read_text())["request"]
    longer = asked.model_copy(update={"serving": asked.serving.model_copy(update={"max_new_tokens": 7})})
    with pytest.raises(InputError, match="max_new_tokens was 6, now 7"):
        generate(longer, model, output, say_nothing, never_start)

    path = Path(asked.data.sources[0].path)
    rows = path.read_bytes()
    path.write_bytes(rows + rows)
    with pytest.raises(InputError, match=rf"input_digest was {before['input_digest'][:12]}, now [0-9a-f]{{12}}"):
        generate(asked, model, output, say_nothing, never_start)
    path.write_bytes(rows)

    weights = load_file(model / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=rf"model_digest was {before['model_digest'][:12]}, now [0-9a-f]{{12}}"):
        generate(asked, model, output, say_nothing, never_start)


def test_what_can_not_be_answered_is_refused_before_ray_starts(
    make_config: Callable[..., Config], asked: Config, model: Path, base_folder: Path, tmp_path: Path
) -> None:
    def refused(config: Config, model: Path = model, output: Path = tmp_path / "out") -> str:
        with pytest.raises(InputError) as error:
            generate(config, model, output, say_nothing, never_start)
        return str(error.value)

    assert "no contract here" in refused(asked, base_folder)
    renamed = tmp_path / "renamed.jsonl"
    renamed.write_text('{"question": "How bad is it?"}\n' * 3)
    said = refused(make_config(data={"sources": [renamed]}))
    assert f"none of the first 3 rows can be read; {renamed}: row 1 has no instruction, only 'question'" in said
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    assert "holds other files than answers" in refused(asked, output=tmp_path / "full")
    assert "not a URI" in refused(asked, output=Path("s3://bucket/answers"))
    assert not (tmp_path / "out").exists()


def start(config: Config, tmp_path: Path, *arguments: object) -> subprocess.Popen[str]:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    command = [sys.executable, "-m", "jobs.generate", "--config", str(path), *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def kill_an_engine(job: subprocess.Popen[str]) -> None:
    """The hard way, as soon as there is one."""
    while True:
        assert job.poll() is None, job.communicate()[0]
        for process in psutil.Process(job.pid).children(recursive=True):
            # The pool that map makes: its worker holds the engine.
            if process.status() != psutil.STATUS_ZOMBIE and "Answerer" in " ".join(process.cmdline()):
                return process.kill()
        time.sleep(0.05)


@pytest.mark.slow
def test_a_killed_job_continues_behind_what_it_committed(
    make_config: Callable[..., Config], model: Path, triples_file: Path, tmp_path: Path
) -> None:
    rows = tmp_path / "many.jsonl"
    rows.write_bytes(triples_file.read_bytes() * 40)
    config = make_config(serving={"max_new_tokens": 24, "max_batch_size": 4})
    output = tmp_path / "answers"
    arguments = ("--model", model, "--input", rows, "--output", output)
    process = start(config, tmp_path, *arguments)
    deadline = time.monotonic() + 240
    while len(list(output.glob("part-*"))) < 3:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    committed = {path: path.stat().st_mtime_ns for path in output.glob("part-*")}
    assert 3 <= len(committed) < 64 * 40 // BATCH_ROWS

    process = start(config, tmp_path, *arguments)
    kill_an_engine(process)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    assert "generated: 2,560 rows" in said
    assert len(lines_of(output)) == 2560
    # What the killed driver's engine may still have committed after it counts as well.
    assert committed.items() <= {path: path.stat().st_mtime_ns for path in output.glob("part-*")}.items()
    assert not list(output.glob(".part-*"))


def test_an_adapter_is_known_by_its_base_and_not_by_where_that_lies(base_folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(base_folder)
    folder = tmp_path / "adapter"
    get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    found = []
    for path, rank, base_digest in (
        (base_folder, 2, "a"),
        (tmp_path, 2, "a"),
        (base_folder, 3, "a"),
        (base_folder, 2, "b"),
    ):
        changed = config | {"base_model_name_or_path": str(path), "r": rank}
        (folder / "adapter_config.json").write_text(json.dumps(changed))
        (folder / MODEL_METADATA_FILE).write_text(json.dumps({"base_digest": base_digest}))
        found.append(model_digest(folder))
    assert found[0] == found[1]
    assert len(set(found)) == 3
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "/nowhere"}))
    with pytest.raises(InputError, match="base model is expected in /nowhere"):
        model_digest(folder)
