"""Decision records: who moved an alias from which version to which, when, why, and on which evidence.

A record is a tag on the version that was decided on. It is written before the alias moves, so the records say what was
champion before, even if a process was killed between the two writes.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from instruct_ray.config.gate import RuleName
from instruct_ray.errors import InputError, one_line
from instruct_ray.tracking.registry_reader import ModelVersion

DECISION_TAG = "instruct_ray.decision."

DecisionKind = Literal["gate", "promote", "rollback", "force"]
RuleStatus = Literal["passed", "failed", "cannot_be_judged"]


class RuleResult(BaseModel):
    """What one rule of the gate found."""

    model_config = ConfigDict(frozen=True)

    name: RuleName
    status: RuleStatus
    numbers: dict[str, float | int | str] = {}
    sentence: str
    """What was found, with the numbers; of a failed rule also what to do."""
    is_accepted: bool
    """Whether the version may pass with this result: it passed, or the policy allows that it can't be judged."""


class Decision(BaseModel):
    """One decision about an alias. The alias moves only if it was accepted."""

    model_config = ConfigDict(frozen=True)

    model: str
    """Name of the registered model. A version that is copied with its tags takes no decision along."""
    sequence: int
    """Orders the decisions of a registered model. Two of them have the same number if they were made at the same time,
    see `DecisionHistory.overtaken`."""
    id: str
    kind: DecisionKind
    alias: str
    from_version: str | None
    """The version under the alias at that time; None if there was none."""
    to_version: str
    is_accepted: bool
    who: str
    """user@host"""
    when: str
    """UTC, ISO 8601."""
    why: str
    rules: tuple[RuleResult, ...] = ()
    evidence_digest: str | None
    """sha256 of evidence.json; None if the version has none."""
    manifest_digest: str | None
    """Digest of the manifest of the version's files; None if it has none."""
    test_digest: str | None = None
    """Digest of the test rows that the evidence was measured on, if known."""
    is_reported: bool | None = None
    """Of a rollback: whether its command came to report it. None in records that do not say."""
    overtaken_by: str | None = None
    """Id of a decision that was made at the same time and counts instead, if this one's process saw it."""

    @property
    def tag(self) -> str:
        """The key of its tag; the id keeps apart the records of two processes that decide at the same time."""
        return f"{DECISION_TAG}{self.sequence:06d}.{self.id}"


def read_decisions(version: ModelVersion) -> list[Decision]:
    """Read the decisions about a version.

    Raises:
        InputError: a record can't be read.
    """
    decisions = [_parse(key, value) for key, value in version.tags.items() if key.startswith(DECISION_TAG)]
    return [one for one in decisions if (one.model, one.to_version) == (version.name, version.number)]


def _parse(key: str, value: str) -> Decision:
    try:
        return Decision.model_validate_json(value)
    except ValidationError as error:
        raise InputError(f"the decision record in tag {key} can't be read: {one_line(error, 100)}") from None
