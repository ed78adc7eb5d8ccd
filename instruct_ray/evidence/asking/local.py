"""driver: asks base model, tuned model and champion, and times them; answers that the journal has are not asked for."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from instruct_ray.config.evidence import EvidenceConfig
from instruct_ray.config.schema import Config
from instruct_ray.evidence.answers import Answer, ArmAnswers, dump_outcome, load_outcome
from instruct_ray.evidence.arms import Arm, LocalModel
from instruct_ray.evidence.asking.engines import Capacity, EnginePool, Prompt, choose_num_engines
from instruct_ray.evidence.asking.journal import Journal, make_key
from instruct_ray.evidence.asking.latency import TimedArm, choose_latency_rows, load_latency, record_latency
from instruct_ray.evidence.limits import limit_answers
from instruct_ray.inference.engine import Completion
from instruct_ray.inference.grammars import choice_grammar


@dataclass(frozen=True)
class LocalArm:
    """An arm with its prompts, their limits and the keys of their answers; shape [rows]."""

    arm: Arm
    prompts: tuple[Prompt, ...]
    keys: tuple[str, ...]
    timed: tuple[int, ...]
    """Indices of the rows whose requests are timed."""
    latency_key: str

    @classmethod
    def make(cls, arm: Arm, evidence: EvidenceConfig, labels: Sequence[str] | None) -> "LocalArm":
        """Make the prompts of an arm; its answers are free if `labels` is None."""
        grammar = None if labels is None else choice_grammar(arm.model.renderer.contract, labels)
        limits = limit_answers(arm.prompts, arm.model.context, evidence.max_new_tokens, grammar)
        prompts = tuple(Prompt(ids, limit) for ids, limit in zip(arm.prompts, limits, strict=True))
        rules = [] if grammar is None else [grammar]
        keys = tuple(
            make_key(arm.model.identity, one.token_ids, one.sampling.max_new_tokens, *rules) for one in prompts
        )
        timed = tuple(choose_latency_rows(len(prompts), evidence.num_latency_rows))
        return cls(arm, prompts, keys, timed, make_key("latency", arm.name, [keys[index] for index in timed]))

    def collect(self, journal: Journal) -> ArmAnswers:
        """The answers and latencies that the journal has."""
        outcomes = tuple(load_outcome(journal[key]) for key in self.keys)
        latency = load_latency(journal, self.latency_key)
        return ArmAnswers(self.arm.name, self.arm.kind, self.arm.description, outcomes, latency)


@dataclass(frozen=True)
class _TimedLocalArm:
    """An arm whose engine is loaded."""

    source: LocalArm
    pool: EnginePool

    @property
    def latency_key(self) -> str:
        return self.source.latency_key

    @property
    def num_requests(self) -> int:
        return len(self.source.timed)

    def time_one(self, index: int) -> float:
        return self.pool.time_one(self.source.prompts[self.source.timed[index]])

    def time_many(self, num_at_once: int) -> float:
        return self.pool.time_many([self.source.prompts[index] for index in self.source.timed], num_at_once)


class LocalAsker:
    """Asks the arms that engines answer."""

    def __init__(
        self,
        arms: Sequence[Arm],
        config: Config,
        journal: Journal,
        status: Callable[[str], None],
    ) -> None:
        self._arms = [LocalArm.make(arm, config.evidence, config.evidence_labels) for arm in arms]
        self._evidence, self._serving, self._journal, self._status = config.evidence, config.serving, journal, status

    @property
    def latency_keys(self) -> list[str]:
        """The keys of the latencies of all arms."""
        return [one.latency_key for one in self._arms]

    @property
    def is_finished(self) -> bool:
        """Whether the journal has all answers and latencies."""
        return all(self._is_finished(one) for one in self._arms)

    def ask(self, rivals: Mapping[str, TimedArm]) -> None:
        """Ask for all answers and time all arms; Ray must be running.

        Args:
            rivals: arms that others answer; their requests are timed between those of the engines.
        """
        models = list({one.arm.model.identity: one.arm.model for one in self._arms}.values())
        pools: dict[str, EnginePool] = {}
        # Measured once: Ray needs a moment to notice that an engine has been stopped.
        capacity = Capacity.measure()
        together = capacity.fits_together(models, self._serving)
        try:
            for model in models:
                arms = [one for one in self._arms if one.arm.model is model]
                if all(self._is_finished(one) for one in arms):
                    continue
                pools[model.identity] = self._answer(model, arms, capacity.num_engines(self._serving) - len(pools))
                if not together:
                    self._time(arms, pools, {}, interleaved=False)
                    pools.pop(model.identity).close()
            self._time(self._arms if together else [], pools, rivals, interleaved=together)
        finally:
            for pool in pools.values():
                pool.close()

    def collect(self) -> list[ArmAnswers]:
        """The answers of all arms, once all were asked."""
        return [one.collect(self._journal) for one in self._arms]

    def _is_finished(self, one: LocalArm) -> bool:
        return one.latency_key in self._journal and not self._missing(one)

    def _answer(self, model: LocalModel, arms: Sequence[LocalArm], num_free: int) -> EnginePool:
        """Ask for the missing answers of a model's arms; returns its pool with one engine.

        Args:
            model: the model.
            arms: its arms.
            num_free: engines that fit into the cluster.
        """
        self._status(f"loading the {model.name} model")
        num_missing = sum(len(self._missing(one)) for one in arms)
        count = choose_num_engines(self._evidence.num_engines, num_missing, num_free)
        pool = EnginePool(model, self._serving, count)
        for one in arms:
            self._answer_arm(one, pool)
        pool.keep_one()
        return pool

    def _answer_arm(self, one: LocalArm, pool: EnginePool) -> None:
        # Prompts of similar length share a batch, which needs less padding.
        order = sorted(self._missing(one), key=lambda index: len(one.prompts[index].token_ids))
        num_answered = len(one.keys) - len(order)
        for places, completions in pool.generate([one.prompts[index] for index in order]):
            indices = [order[place] for place in places]
            answers = [
                (one.keys[index], dump_outcome(self._to_answer(one, index, completion)))
                for index, completion in zip(indices, completions, strict=True)
            ]
            self._journal.add(answers)
            num_answered += len(indices)
            self._status(f"{one.arm.name}: {num_answered}/{len(one.keys)} rows")

    def _to_answer(self, one: LocalArm, index: int, completion: Completion) -> Answer:
        text = one.arm.model.renderer.decode(completion.token_ids)
        num_prompt_tokens = len(one.prompts[index].token_ids)
        return Answer(text, completion.finish_reason, num_prompt_tokens, len(completion.token_ids))

    def _missing(self, one: LocalArm) -> list[int]:
        """Indices of the rows without an answer; equal prompts are asked once."""
        first = {key: index for index, key in reversed(list(enumerate(one.keys)))}
        return [index for key, index in first.items() if key not in self._journal]

    def _time(
        self,
        arms: Sequence[LocalArm],
        pools: Mapping[str, EnginePool],
        rivals: Mapping[str, TimedArm],
        *,
        interleaved: bool,
    ) -> None:
        """Time arms whose engines are loaded, and rivals, and record it."""
        timed: dict[str, TimedArm] = {
            one.arm.name: _TimedLocalArm(one, pools[one.arm.model.identity])
            for one in arms
            if one.arm.model.identity in pools
        }
        record_latency(timed | dict(rivals), self._journal, self._status, interleaved=interleaved)
