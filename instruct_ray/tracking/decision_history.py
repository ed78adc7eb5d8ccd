"""The decisions about the versions of a registered model, and what follows from them."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from instruct_ray.tracking.decision_records import Decision, read_decisions
from instruct_ray.tracking.registry_reader import ModelVersion


@dataclass(frozen=True)
class DecisionHistory:
    """All decisions of a registered model, oldest first."""

    decisions: tuple[Decision, ...]

    @classmethod
    def from_versions(cls, versions: Iterable[ModelVersion]) -> "DecisionHistory":
        """Collect the decisions about the versions of a registered model.

        Raises:
            InputError: a record can't be read.
        """
        found = [decision for version in versions for decision in read_decisions(version)]
        return cls(tuple(sorted(found, key=lambda decision: (decision.sequence, decision.when, decision.id))))

    @property
    def next_sequence(self) -> int:
        """The sequence number of the next decision."""
        return 1 + max((decision.sequence for decision in self.decisions), default=0)

    @cached_property
    def overtaken(self) -> frozenset[str]:
        """Ids of the accepted decisions that do not count, because they knew nothing of another one.

        Their processes withdrew them, or were killed before that. Of decisions with the same number the first counts.
        """
        first: dict[tuple[str, int], str] = {}
        for decision in self._standing:
            first.setdefault((decision.alias, decision.sequence), decision.id)
        accepted = {decision.id for decision in self.decisions if decision.is_accepted}
        return frozenset(accepted - set(first.values()))

    @property
    def _standing(self) -> list[Decision]:
        """The accepted decisions that were not withdrawn."""
        return [decision for decision in self.decisions if decision.is_accepted and decision.overtaken_by is None]

    @cached_property
    def _counting(self) -> tuple[Decision, ...]:
        return tuple(decision for decision in self.decisions if decision.id not in self.overtaken)

    def moves(self, alias: str) -> list[Decision]:
        """The decisions that moved an alias."""
        return [decision for decision in self._counting if decision.alias == alias and decision.is_accepted]

    def last_move(self, alias: str) -> Decision | None:
        """The last accepted decision about an alias."""
        moves = self.moves(alias)
        return moves[-1] if moves else None

    def overtaker(self, decision: Decision, current: str | None) -> Decision | None:
        """The decision that a new one did not know of and has to give way to; None if there is none.

        Args:
            decision: the new one, recorded but not applied.
            current: the version under its alias, read after it was recorded.
        """
        unknown = [
            other
            for other in self._standing
            if other.alias == decision.alias and other.sequence >= decision.sequence and other.id != decision.id
        ]
        for other in reversed(unknown):
            # If it has moved the alias, its process may not have seen the new record any more.
            if other.sequence > decision.sequence or other.to_version == current or decision.id in self.overtaken:
                return other
        return None

    def pending(self, alias: str, current: str | None) -> Decision | None:
        """The last accepted decision if the alias has not followed it: its process was killed between the writes."""
        last = self.last_move(alias)
        return last if last and current == last.from_version and current != last.to_version else None

    def champions(self, alias: str) -> list[str]:
        """The versions that the alias pointed to, without those that a rollback left; the last one is there now.

        A decision also tells what was there before it, so a version that was put there without a record counts.
        """
        stack: list[str] = []
        for decision in self.moves(alias):
            if decision.kind != "rollback":
                stack = [*_return_to(stack, decision.from_version), decision.to_version]
            else:
                stack = _return_to(stack, decision.to_version)
        return stack

    def last_on(self, version: str) -> Decision | None:
        """The last decision about a version that counts."""
        about = [decision for decision in self._counting if decision.to_version == version]
        return about[-1] if about else None

    def num_other_evidence(self, test_digest: str, evidence_digest: str | None) -> int:
        """How many other pieces of evidence from the same test rows were decided on, however often each.

        By the gate or by a person: who forces a version has seen its evidence.
        """
        others = {decision.evidence_digest for decision in self.decisions if decision.test_digest == test_digest}
        return len(others - {evidence_digest, None})


def _return_to(stack: list[str], version: str | None) -> list[str]:
    """The stack up to the last occurrence of a version, which is added if it is not in it; all of it for None."""
    if version is None:
        return stack
    for index in reversed(range(len(stack))):
        if stack[index] == version:
            return stack[: index + 1]
    return [*stack, version]
