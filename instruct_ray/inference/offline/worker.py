"""A part of the questions -> its file of answers, in a Ray Data actor that holds the engine."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from instruct_ray.data.rendering.renderer import load_renderer
from instruct_ray.errors import InputError
from instruct_ray.files import atomic_write_text
from instruct_ray.inference.engine import SamplingParams, generate_each
from instruct_ray.inference.offline.inputs import InputBatch, InputRow
from instruct_ray.inference.transformers_engine import TransformersEngine


@dataclass(frozen=True)
class GenerationRecord:
    """One line of the output."""

    id: str
    file: str
    offset: int
    answer: str | None = None
    finish_reason: str | None = None
    """`stop`, or `length` where the answer was cut at `serving.max_new_tokens` or the model's context."""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    reason: str | None = None
    """Why there is no answer: `too_long`, or what is wrong with the row."""
    detail: str | None = None


class GenerationWorker:
    """Called by Ray Data with one part after the other."""

    def __init__(self, model: Path, output: Path, max_batch_size: int, max_new_tokens: int) -> None:
        self._renderer = load_renderer(model)
        self._engine = TransformersEngine(model, self._renderer.contract, max_batch_size)
        self._output = output
        self._max_new_tokens = max_new_tokens

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Answer a part and commit its file."""
        part = InputBatch.load(row)
        answers = self.answer(part.rows)
        lines = [json.dumps(asdict(answer), ensure_ascii=False) + "\n" for answer in answers]
        atomic_write_text(self._output / part.name, "".join(lines))
        return {"num_rows": len(answers)}

    def answer(self, questions: list[InputRow]) -> list[GenerationRecord]:
        """An answer, or why there is none, for each question; greedy."""
        answers = [GenerationRecord(q.id, q.file, q.offset, reason=q.reason, detail=q.detail) for q in questions]
        asked: list[tuple[int, list[int], SamplingParams]] = []
        for index, question in enumerate(questions):
            prompt = self._prompt(question, answers[index])
            if isinstance(prompt, GenerationRecord):
                answers[index] = prompt
            else:
                room = self._engine.max_context - len(prompt)
                asked.append((index, prompt, SamplingParams(min(room, self._max_new_tokens))))
        # Like lengths together: less padding in a batch.
        asked.sort(key=lambda one: len(one[1]))
        completions = generate_each(self._engine, [(prompt, sampling) for _, prompt, sampling in asked])
        for (index, prompt, _), completion in zip(asked, completions, strict=True):
            q = questions[index]
            text = self._renderer.tokenizer.decode(completion.token_ids, skip_special_tokens=True)
            counts = len(prompt), len(completion.token_ids)
            answers[index] = GenerationRecord(q.id, q.file, q.offset, str(text), completion.finish_reason, *counts)
        return answers

    def _prompt(self, question: InputRow, unanswered: GenerationRecord) -> list[int] | GenerationRecord:
        """The tokens that the answer follows, or the line that says why there is none."""
        place = (unanswered.id, unanswered.file, unanswered.offset)
        if question.triple is None:
            return unanswered
        try:
            prompt = self._renderer.prompt(self._renderer.chat(question.triple))
        except InputError as error:
            return GenerationRecord(*place, reason="not_rendered", detail=str(error))
        if len(prompt) >= self._engine.max_context:
            detail = f"has {len(prompt)} tokens; the model reads {self._engine.max_context}, one of them for an answer"
            return GenerationRecord(*place, prompt_tokens=len(prompt), reason="too_long", detail=detail)
        return prompt
