"""The Ray Data actor of offline generation: a batch of input rows -> a part file with one answer per row."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from instruct_ray.config.serving import ServingConfig
from instruct_ray.data.rendering.renderer import load_renderer
from instruct_ray.errors import InputError
from instruct_ray.files import atomic_write_text
from instruct_ray.inference.engine import Completion, SamplingParams, generate_all
from instruct_ray.inference.engines import create_engine
from instruct_ray.inference.grammars import choice_grammar
from instruct_ray.inference.offline.inputs import InputBatch, InputRow


@dataclass(frozen=True)
class GenerationRecord:
    """One line of the output: the answer to an input row, or the reason why there is none."""

    id: str
    file: str
    offset: int
    answer: str | None = None
    finish_reason: str | None = None
    """`stop`, or `length` if the answer reached `serving.max_new_tokens` or the model's context length."""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    reason: str | None = None
    """Without an answer: `too_long`, `not_rendered`, or the code for why the row can't be read."""
    detail: str | None = None


class GenerationWorker:
    """Generates the answers of one batch after another; Ray Data calls it with dumped batches."""

    def __init__(self, model_dir: Path, output_dir: Path, serving: ServingConfig) -> None:
        self._renderer = load_renderer(model_dir)
        self._engine = create_engine(model_dir, self._renderer.contract, serving)
        self._output_dir = output_dir
        self._max_new_tokens = serving.max_new_tokens
        self._grammar = None
        if serving.only_labels:
            labels = self._renderer.contract.labels
            assert labels is not None, "generate checks it"
            self._grammar = choice_grammar(self._renderer.contract, labels)

    def __call__(self, dumped_batch: dict[str, Any]) -> dict[str, Any]:
        """Generate the answers of a batch and write its part file atomically."""
        batch = InputBatch.load(dumped_batch)
        records = self.generate(batch.rows)
        lines = [json.dumps(asdict(record), ensure_ascii=False) + "\n" for record in records]
        atomic_write_text(self._output_dir / batch.part_name, "".join(lines))
        return {"num_rows": len(records)}

    def generate(self, rows: list[InputRow]) -> list[GenerationRecord]:
        """Generate one record per row, in order, by greedy decoding."""
        rendered = [self._render(row) for row in rows]
        prompts = {index: result for index, result in enumerate(rendered) if isinstance(result, list)}
        # Prompts of similar length share a batch, which needs less padding.
        order = sorted(prompts, key=lambda index: len(prompts[index]))
        limits = [min(self._engine.max_context - len(prompts[index]), self._max_new_tokens) for index in order]
        samplings = [SamplingParams(limit, grammar=self._grammar) for limit in limits]
        completions = generate_all(self._engine, [prompts[index] for index in order], samplings)
        answered = {
            index: self._build_record(rows[index], prompts[index], completion)
            for index, completion in zip(order, completions, strict=True)
        }
        return [
            result if isinstance(result, GenerationRecord) else answered[index] for index, result in enumerate(rendered)
        ]

    def _render(self, row: InputRow) -> list[int] | GenerationRecord:
        """Return the prompt token ids of a row, or its final record if it can't get an answer."""
        if row.triple is None:
            return GenerationRecord(row.id, row.file, row.offset, reason=row.reason, detail=row.detail)
        try:
            prompt_ids = self._renderer.prompt(self._renderer.chat(row.triple), row.triple.tools)
        except InputError as error:
            return GenerationRecord(row.id, row.file, row.offset, reason="not_rendered", detail=str(error))
        max_context = self._engine.max_context
        if len(prompt_ids) >= max_context:
            detail = f"has {len(prompt_ids)} tokens, which leaves no room for an answer in the context of {max_context}"
            return GenerationRecord(
                row.id, row.file, row.offset, prompt_tokens=len(prompt_ids), reason="too_long", detail=detail
            )
        return prompt_ids

    def _build_record(self, row: InputRow, prompt_ids: list[int], completion: Completion) -> GenerationRecord:
        return GenerationRecord(
            row.id,
            row.file,
            row.offset,
            answer=self._renderer.decode(completion.token_ids),
            finish_reason=completion.finish_reason,
            prompt_tokens=len(prompt_ids),
            completion_tokens=len(completion.token_ids),
        )
