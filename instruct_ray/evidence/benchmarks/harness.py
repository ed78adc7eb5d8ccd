"""Lets lm-eval ask a model the questions of a benchmark, in a Ray task; the only importer of lm-eval."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import Any

from instruct_ray.base_model.tokenizer import load_tokenizer
from instruct_ray.config.evidence import BenchmarksConfig
from instruct_ray.errors import InputError, one_line
from instruct_ray.evidence.benchmarks.comparison import BenchmarkAnswers
from instruct_ray.evidence.benchmarks.offline_tasks import OFFLINE_TASKS, make_task_config
from instruct_ray.inference.loading import load_for_inference

FIELD = "evidence.benchmarks.tasks"
# Those that say of each question whether it was answered rightly. Of several the first counts.
METRICS = ("acc_norm", "acc", "exact_match")
# lm-eval's default, and that of published figures for log-likelihood tasks. With a template a benchmark would also
# measure whether the model knows the template, which a base model may never have seen.
APPLY_CHAT_TEMPLATE = False
MAX_ERROR_CHARACTERS = 300


def check_tasks(names: Sequence[str]) -> None:
    """Check, before anything starts, that lm-eval is installed and knows the benchmarks.

    Raises:
        InputError: it is not, or a name is unknown.
    """
    if find_spec("lm_eval") is None:
        raise InputError(f"{FIELD}: lm-eval is not installed; run `pip install 'instruct-ray[benchmarks]'`")
    if others := [name for name in names if name not in OFFLINE_TASKS]:
        from lm_eval.tasks import TaskManager  # noqa: PLC0415  (an extra, and takes seconds)

        index = TaskManager().task_index
        if unknown := [name for name in others if name not in index]:
            raise InputError(
                f"{FIELD}: {unknown[0]} is no task of lm-eval {lm_eval_version()}; take {' or '.join(OFFLINE_TASKS)}, "
                "or one that `lm-eval ls tasks` lists"
            )


def lm_eval_version() -> str:
    """The version of lm-eval that is installed."""
    return version("lm_eval")


def ask_model(model_dir: Path, name: str, settings: BenchmarksConfig) -> BenchmarkAnswers:
    """Ray task: ask a model, or an adapter merged into its base, the questions of a benchmark.

    Raises:
        InputError: the benchmark can't be loaded, or does not say which questions were answered rightly.
    """
    from lm_eval import simple_evaluate  # noqa: PLC0415  (an extra, and takes seconds)
    from lm_eval.models.huggingface import HFLM  # noqa: PLC0415
    from lm_eval.tasks import TaskManager  # noqa: PLC0415

    # Reading the files of all tasks takes many seconds.
    manager = TaskManager(include_defaults=name not in OFFLINE_TASKS)
    tasks = _load_tasks(name, manager)
    # Loaded as the engines do: safetensors only, no code from the folder, in a precision that the CPU is fast in.
    model = load_for_inference(model_dir)
    results = simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=load_tokenizer(model_dir), batch_size=settings.batch_size),
        tasks=list(tasks.values()),
        limit=settings.limit,
        # Its standard errors: the intervals are our own.
        bootstrap_iters=0,
        log_samples=True,
        apply_chat_template=APPLY_CHAT_TEMPLATE,
        task_manager=manager,
    )
    samples = {task: results["samples"][task] for task in tasks}
    first = next(iter(tasks.values()))
    return BenchmarkAnswers(
        metric=(metric := _choose_metric(name, samples)),
        num_few_shot=first.get_config("num_fewshot") or 0,
        chance=_chance(samples) if first.OUTPUT_TYPE == "multiple_choice" else None,
        dtype=str(model.dtype).removeprefix("torch."),
        correct=_read_correct(name, samples, metric),
    )


def _load_tasks(name: str, manager: Any) -> Mapping[str, Any]:
    """The tasks of a benchmark by name: one, or those of a group."""
    import lm_eval  # noqa: PLC0415  (an extra, and takes seconds)

    task = make_task_config(name, Path(lm_eval.__file__).parent) if name in OFFLINE_TASKS else name
    try:
        tasks: Mapping[str, Any] = manager.load([task])["tasks"]
    # A data set that can't be downloaded, a missing package, a script that is no longer allowed: each its own.
    except Exception as error:
        raise InputError(
            f"{FIELD}: {name} can't be loaded: {one_line(error, MAX_ERROR_CHARACTERS)}; {OFFLINE_TASKS[0]} needs no "
            "network"
        ) from None
    return tasks


def _choose_metric(name: str, samples: Mapping[str, list[dict[str, Any]]]) -> str:
    """The first metric that every task of the benchmark has."""
    found = set.intersection(*(set(of[0]["metrics"]) for of in samples.values()))
    for metric in METRICS:
        if metric in found:
            return metric
    raise InputError(
        f"{FIELD}: {name} does not say of each question whether it was answered rightly: it has "
        f"{', '.join(sorted(found)) or 'no metric'}, none of {', '.join(METRICS)}; take another task"
    )


def _read_correct(name: str, samples: Mapping[str, list[dict[str, Any]]], metric: str) -> dict[str, bool]:
    """Whether each question was answered rightly, by task and number; of several filters the first counts."""
    correct: dict[str, bool] = {}
    for task, of in samples.items():
        for sample in of:
            if sample["filter"] == of[0]["filter"]:
                value = float(sample[metric])
                if value not in (0.0, 1.0):
                    raise InputError(f"{FIELD}: {name} gives parts of a point ({value:g}); take another task")
                correct[f"{task}:{sample['doc_id']}"] = value == 1.0
    return correct


def _chance(samples: Mapping[str, list[dict[str, Any]]]) -> float:
    """The accuracy of guessing."""
    return fmean(1 / len(sample["filtered_resps"]) for of in samples.values() for sample in of)
