"""The steps of the demo: the stages in order, and one question before and after tuning."""

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from langchain_core.prompts import PromptTemplate
from langchain_openai import ChatOpenAI
from rich.console import Console

from instruct_ray.base_model.resolve import resolve_base_model
from instruct_ray.cli import ray_session
from instruct_ray.cli.stages.evaluate import run_evaluate
from instruct_ray.cli.stages.prepare import run_prepare
from instruct_ray.cli.stages.register import browse_command, run_register
from instruct_ray.cli.stages.serve import start_endpoint
from instruct_ray.cli.stages.tune import run_tune
from instruct_ray.config.schema import Config
from instruct_ray.console import StatusLine
from instruct_ray.data.rendering.renderer import load_renderer
from instruct_ray.evidence.evaluate import load_evidence
from instruct_ray.inference.engine import SamplingParams, generate_all
from instruct_ray.inference.engines import create_engine
from instruct_ray.registry.model_registry import ModelRegistry
from instruct_ray.run.folder import RunFolder
from instruct_ray.tracking.mlflow_client import tracking_uri

INCIDENT = "Database is down"
TEMPLATE = "Classify severity: {incident}"
PROMPT = TEMPLATE.format(incident=INCIDENT)
MAX_TOKENS = 40
STAGES = (
    ("prepare", "triples -> packs", run_prepare),
    ("tune", "packs -> model", run_tune),
    ("evaluate", "model -> evidence", run_evaluate),
    ("register", "evidence -> version", run_register),
)

console = Console(highlight=False, soft_wrap=True)


def run_demo(config: Config, path: Path, *, chooses_port: bool = True) -> dict[str, object]:
    """Run the stages in order, ask the base model and the endpoint the same question, and stop Ray.

    Args:
        config: the config of the run.
        path: the config file, which the commands shown at the end name.
        chooses_port: whether the endpoint gets a free port in place of `serving.port`.

    Returns:
        The content of `summary.json`.
    """
    try:
        with StatusLine("demo") as status:
            status("starting Ray")
            # One cluster for all stages, with enough CPUs for each of them.
            ray_session.init_ray()
        return _run_steps(config, path, chooses_port)
    finally:
        ray_session.shut_down_ray()


def _run_steps(config: Config, path: Path, chooses_port: bool) -> dict[str, object]:
    seconds: dict[str, float] = {}
    for name, text, stage in STAGES:
        _heading(f"{name}: {text}")
        seconds[name] = _measure_seconds(lambda stage=stage: stage(config))  # type: ignore[misc]

    _heading("before: what the base model answers")
    before = _ask_base(config)
    _show_answer(PROMPT, before)

    _heading("serve: version -> endpoint")
    with StatusLine("serve") as status:
        started = time.perf_counter()
        if chooses_port:
            # Only now: a port that was free before the training may have been taken since.
            serving = config.serving.model_copy(update={"port": _free_port()})
            config = config.model_copy(update={"serving": serving})
        base_url = start_endpoint(config, status)
        seconds["serve"] = round(time.perf_counter() - started, 1)
    console.print(base_url)

    _heading("after: what the tuned model answers, through LangChain and curl")
    llm = ChatOpenAI(
        model=config.registry.name, base_url=base_url, api_key="none", temperature=0, max_tokens=MAX_TOKENS
    )
    after = _ask_with_curl(config, base_url)
    langchain_answer = str(llm.invoke(PROMPT).content)
    console.print("ChatOpenAI(base_url=…).invoke(…).content", style="dim")
    _show_answer(PROMPT, langchain_answer)
    chain = PromptTemplate.from_template(TEMPLATE) | llm
    chain_answer = str(chain.invoke({"incident": INCIDENT}).content)
    console.print("(PromptTemplate | llm).invoke(…).content", style="dim")
    _show_answer(PROMPT, chain_answer)
    _show_evidence(config)
    _show_next_commands(config, path)
    return {
        "prompt": PROMPT,
        "before": before,
        "after": after,
        **_evidence_summary(config),
        "seconds": seconds,
        "model": config.registry.name,
        **_version_summary(config),
        "base_url": base_url,
        "langchain_answer": langchain_answer,
        "chain_answer": chain_answer,
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _ask_base(config: Config) -> str:
    """The answer of the base model, generated in this process, which has loaded the libraries."""
    renderer = load_renderer(RunFolder.from_config(config).model_dir)
    engine = create_engine(resolve_base_model(config).initial_model_dir, renderer.contract, config.serving)
    prompt = renderer.prompt([{"role": "user", "content": PROMPT}])
    [completion] = generate_all(engine, [prompt], SamplingParams(MAX_TOKENS))
    engine.close()
    return str(renderer.tokenizer.decode(completion.token_ids, skip_special_tokens=True))


def _ask_with_curl(config: Config, base_url: str) -> str:
    message = {"role": "user", "content": PROMPT}
    body = json.dumps({"model": config.registry.name, "temperature": 0, "messages": [message]})
    command = ["curl", "-s", f"{base_url}/chat/completions", "-H", "Content-Type: application/json", "-d", body]
    console.print(shlex.join(command), style="dim")
    if shutil.which("curl") is None:
        command = [sys.executable, "-c", _POST, f"{base_url}/chat/completions", body]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    answer = str(json.loads(output)["choices"][0]["message"]["content"])
    _show_answer(PROMPT, answer)
    return answer


# Sends the same request where there is no curl.
_POST = """
import sys, urllib.request
request = urllib.request.Request(sys.argv[1], sys.argv[2].encode(), {"Content-Type": "application/json"})
print(urllib.request.urlopen(request).read().decode())
"""


def _evidence_summary(config: Config) -> dict[str, object]:
    evidence = load_evidence(config)
    arms = evidence["arms"]
    return {
        "verdict": evidence["verdict"]["outcome"],
        "verdict_sentence": evidence["verdict"]["sentence"],
        "report": str(RunFolder.from_config(config).report_file),
        "accuracy": {name: round(arm["accuracy"], 4) for name, arm in arms.items()},
        "label_found": {name: round(arm["label_found"], 4) for name, arm in arms.items()},
        "prompt_tokens": {name: round(arm["prompt_tokens"], 1) for name, arm in arms.items()},
        "num_test": evidence["num_test"],
    }


def _version_summary(config: Config) -> dict[str, object]:
    number = json.loads(RunFolder.from_config(config).version_file.read_text())["version"]
    decision = ModelRegistry(tracking_uri(config)).history(config.registry.name).last_on(number)
    assert decision is not None, "every registration decides"
    return {"version": number, "alias": config.registry.alias, "decision": f"{decision.kind}: {decision.why}"}


def _show_evidence(config: Config) -> None:
    evidence = load_evidence(config)
    _heading(f"was it worth it? {evidence['num_test']} held-out reports")
    console.print(evidence["verdict"]["sentence"], markup=False, style="bold")
    console.print(f"report: {RunFolder.from_config(config).report_file}", markup=False)
    for name, arm in evidence["arms"].items():
        bar = "█" * round(40 * arm["accuracy"])
        console.print(f"{name:<12} {bar:<40} {arm['accuracy']:.1%} right, {arm['prompt_tokens']:.0f} prompt tokens")


def _show_next_commands(config: Config, path: Path) -> None:
    _heading("next")
    relative = os.path.relpath(path)
    overrides = f"--config {relative} run.storage={config.run.storage}"
    console.print(f"serve it           .venv/bin/instruct-ray serve {overrides}", markup=False)
    console.print(f"browse versions    {browse_command(config)}", markup=False)
    console.print(
        "tune your own      .venv/bin/instruct-ray prepare --config my.yaml   (then tune, evaluate, register)"
    )


def _show_answer(prompt: str, answer: str) -> None:
    console.print(f"  > {prompt}", markup=False)
    console.print(f"  {answer.strip()}\n", markup=False, style="bold")


def _heading(text: str) -> None:
    console.print(f"\n── {text}", style="bold cyan")


def _measure_seconds(function: Callable[[], None]) -> float:
    started = time.perf_counter()
    function()
    return round(time.perf_counter() - started, 1)
