"""The scores of each arm by each measure, one per answered row. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from instruct_ray.data.sources.triple import Triple
from instruct_ray.evidence.answers import Answer, ArmAnswers
from instruct_ray.evidence.evaluated_rows import EvaluatedRow
from instruct_ray.evidence.metrics import is_exact
from instruct_ray.evidence.scoring.custom import Metric, score_rows
from instruct_ray.evidence.scoring.label_task import macro_f1
from instruct_ray.evidence.scoring.measures import Measure, score_answers
from instruct_ray.evidence.statistics.accuracy import paired_accuracy_difference
from instruct_ray.evidence.statistics.difference import Difference
from instruct_ray.evidence.statistics.macro_f1 import paired_macro_f1_difference
from instruct_ray.evidence.statistics.means import paired_mean_difference


@dataclass(frozen=True)
class ScoredArm:
    """An arm with its answered rows; rows whose request failed are left out."""

    source: ArmAnswers
    rows: tuple[EvaluatedRow, ...]
    """All rows."""

    @cached_property
    def answers(self) -> dict[int, Answer]:
        """The answers by index of the row."""
        return {index: one for index, one in enumerate(self.source.outcomes) if isinstance(one, Answer)}

    @cached_property
    def correct(self) -> dict[int, bool]:
        """Whether each answer is right, by index of the row; a refused one is not."""
        return {index: is_exact(one.text, self.rows[index].triple.output) for index, one in self.answers.items()}

    @property
    def texts(self) -> list[str]:
        """The answers, in the order of the rows."""
        return [answer.text for answer in self.answers.values()]

    @property
    def triples(self) -> list[Triple]:
        """The answered rows."""
        return [self.rows[index].triple for index in self.answers]

    @property
    def outputs(self) -> list[str]:
        """The expected outputs of the answered rows."""
        return [triple.output for triple in self.triples]

    @property
    def groups(self) -> list[str]:
        """The groups of the answered rows."""
        return [self.rows[index].group for index in self.answers]


@dataclass(frozen=True)
class Scorer:
    """The measures of an evaluation besides exact match."""

    measures: Sequence[Measure]
    metrics: Mapping[str, Metric]
    """The user's own, by `module:function`."""

    @property
    def names(self) -> list[str]:
        """The names of all measures."""
        return [*self.measures, *self.metrics]

    def mean(self, name: str, arm: ScoredArm) -> float:
        """The mean score of an arm; macro F1 over its rows."""
        if name == Measure.MACRO_F1:
            return macro_f1(arm.texts, arm.outputs)
        scores = self._score(name, arm.texts, arm.triples)
        return sum(scores) / len(scores)

    def compare(self, name: str, first: ScoredArm, second: ScoredArm) -> Difference:
        """The difference of two arms on the rows that both answered."""
        indices = [index for index in first.answers if index in second.answers]
        triples = [first.rows[index].triple for index in indices]
        groups = [first.rows[index].group for index in indices]
        a, b = ([arm.answers[index].text for index in indices] for arm in (first, second))
        if name == Measure.MACRO_F1:
            return paired_macro_f1_difference(a, b, [triple.output for triple in triples], groups)
        return paired_mean_difference(
            self._score(name, a, triples), self._score(name, b, triples), groups, within_0_1=name not in self.metrics
        )

    def _score(self, name: str, texts: Sequence[str], triples: Sequence[Triple]) -> list[float]:
        outputs = [triple.output for triple in triples]
        if name in self.metrics:
            return score_rows(self.metrics[name], texts, outputs, [triple.dump() for triple in triples])
        return score_answers(Measure(name), texts, outputs)


def compare_accuracies(first: ScoredArm, second: ScoredArm, confidence: float) -> Difference:
    """The difference of the accuracies of two arms on the rows that both answered."""
    indices = [index for index in first.answers if index in second.answers]
    return paired_accuracy_difference(
        [first.correct[index] for index in indices],
        [second.correct[index] for index in indices],
        [first.rows[index].group for index in indices],
        confidence=confidence,
    )
