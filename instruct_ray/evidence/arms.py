"""The arms of the comparison, and the prompts of those that are answered here: base, tuned model and champion. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from instruct_ray.config.evidence import EvidenceConfig
from instruct_ray.data.rendering.renderer import Renderer
from instruct_ray.data.sources.triple import Triple
from instruct_ray.errors import InputError
from instruct_ray.evidence.answers import ArmKind
from instruct_ray.evidence.prompts import (
    few_shot_counts,
    few_shot_prompt,
    fit_to_context,
    name_rejected_prompt,
    passages_prompt,
    zero_shot_prompts,
)

ZERO_SHOT, RAG, TUNED, TUNED_RAG, CHAMPION = "zero_shot", "rag", "tuned", "tuned_rag", "champion"

# What to do about a prompt that can't be asked.
PREPARE_AGAIN = "use a lower data.max_tokens under another run.name"
WITHOUT_CHAMPION = "evidence.compare_champion=false leaves the champion out"


@dataclass(frozen=True)
class LocalModel:
    """A model that an engine answers with."""

    name: str
    """`base`, `tuned` or `champion`."""
    folder: Path
    renderer: Renderer
    context: int
    """Maximum number of tokens of prompt and answer together."""
    identity: str
    """Digest of what decides its answers."""
    num_bytes: int
    """Size of the files of its weights, with those of an adapter's base model."""


@dataclass(frozen=True)
class Arm:
    """A model and the prompts it answers, one per row."""

    name: str
    kind: ArmKind
    description: str
    model: LocalModel
    prompts: list[list[int]]


@dataclass(frozen=True)
class Additions:
    """What goes into prompts besides the row, best first; shape [rows]."""

    examples: Sequence[Sequence[Triple]]
    passages: Sequence[Sequence[str]] | None = None
    """None without documents."""


def make_arms(
    base: LocalModel, tuned: LocalModel, rows: Sequence[Triple], additions: Additions, evidence: EvidenceConfig
) -> tuple[list[Arm], list[str]]:
    """Make the arms of base and tuned model, with all prompts rendered by the contract of the tuned model.

    Returns:
        The arms, and notes on what did not fit into their prompts.
    """
    prompts, notes = zero_shot_prompts(tuned.renderer, rows, TUNED, PREPARE_AGAIN), list[str]()
    arms = [Arm(ZERO_SHOT, ArmKind.PROMPTING, "The base model, with the row alone.", base, prompts)]
    for count in few_shot_counts(evidence):
        available = max(map(len, additions.examples), default=0)
        if available:
            arms.append(_make_few_shot(base, rows, additions.examples, count, evidence, notes))
    tuned_arms = [Arm(TUNED, ArmKind.TUNED, "The tuned model, with the row alone.", tuned, prompts)]
    if additions.passages is not None:
        texts = f"up to {evidence.num_passages} passages of evidence.documents in its prompt."
        with_passages = _make_with_passages(base, rows, additions.passages, evidence, notes)
        arms.append(Arm(RAG, ArmKind.PROMPTING, f"The base model, with {texts}", base, with_passages))
        tuned_arms.append(Arm(TUNED_RAG, ArmKind.TUNED, f"The tuned model, with {texts}", tuned, with_passages))
    return arms + tuned_arms, notes


def make_champion_arm(champion: LocalModel, version: str, rows: Sequence[Triple]) -> Arm:
    """Make the arm of a registered version, whose prompts are rendered by its own contract."""
    description = f"Version {version} of the registered model, the champion at the time of the evaluation."
    prompts = zero_shot_prompts(champion.renderer, rows, CHAMPION, WITHOUT_CHAMPION)
    return Arm(CHAMPION, ArmKind.CHAMPION, description, champion, prompts)


def check_prompts_fit(arms: Sequence[Arm], rows: Sequence[Triple]) -> None:
    """Check that each prompt leaves room for at least one token of an answer.

    Raises:
        InputError: one does not; names the arm and the row.
    """
    for arm in arms:
        for row, prompt in zip(rows, arm.prompts, strict=True):
            if len(prompt) >= arm.model.context:
                remedy = WITHOUT_CHAMPION if arm.kind is ArmKind.CHAMPION else PREPARE_AGAIN
                raise InputError(
                    f"{arm.name}: the prompt of test row {row.id} has {len(prompt)} tokens, which leaves no room for "
                    f"an answer in the model's context of {arm.model.context}; {remedy}"
                )


def _make_few_shot(
    base: LocalModel,
    rows: Sequence[Triple],
    examples: Sequence[Sequence[Triple]],
    count: int,
    evidence: EvidenceConfig,
    notes: list[str],
) -> Arm:
    name = f"few_shot_{count}"
    asked = [found[:count] for found in examples]
    fitted = [_fit_examples(base, name, row, found, evidence) for row, found in zip(rows, asked, strict=True)]
    numbers = [number for _, number in fitted]
    num_fewer = sum(number < count for number in numbers)
    if num_fewer:
        notes.append(
            f"{name} has {min(numbers)} to {max(numbers)} examples in {num_fewer} of {len(rows)} prompts: more don't "
            f"fit into the model's context of {base.context}, or there are no more training rows"
        )
    choice = "the same for every row" if evidence.few_shot_choice == "random" else "those most similar to the row"
    description = f"The base model, with {count} training rows as earlier turns of the chat, {choice}."
    return Arm(name, ArmKind.PROMPTING, description, base, [prompt for prompt, _ in fitted])


def _fit_examples(
    base: LocalModel, name: str, row: Triple, examples: Sequence[Triple], evidence: EvidenceConfig
) -> tuple[list[int], int]:
    make: Callable[[Sequence[Triple]], list[int]] = partial(few_shot_prompt, base.renderer, row)
    with name_rejected_prompt(name, row, "set evidence.num_few_shot=0"):
        return fit_to_context(make, examples, base.context - evidence.max_new_tokens)


def _make_with_passages(
    base: LocalModel,
    rows: Sequence[Triple],
    passages: Sequence[Sequence[str]],
    evidence: EvidenceConfig,
    notes: list[str],
) -> list[list[int]]:
    prompts, num_fewer = [], 0
    for row, found in zip(rows, passages, strict=True):
        make: Callable[[Sequence[str]], list[int]] = partial(passages_prompt, base.renderer, row)
        with name_rejected_prompt(RAG, row, "leave evidence.documents empty"):
            prompt, number = fit_to_context(make, found, base.context - evidence.max_new_tokens)
        prompts.append(prompt)
        num_fewer += number < len(found)
    if num_fewer:
        notes.append(
            f"rag and tuned_rag have fewer than {evidence.num_passages} passages in {num_fewer} of {len(rows)} "
            f"prompts: more don't fit into the model's context of {base.context}"
        )
    return prompts
