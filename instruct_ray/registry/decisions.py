"""Makes the records of new decisions."""

import socket
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime

from instruct_ray.errors import InputError
from instruct_ray.tracking.decision_history import DecisionHistory
from instruct_ray.tracking.decision_records import Decision, DecisionKind, RuleResult
from instruct_ray.tracking.registry_reader import ModelVersion
from instruct_ray.tracking.user_name import user_name

MAX_REASON_CHARACTERS = 2000


@dataclass(frozen=True)
class Reason:
    """What a new decision is based on."""

    kind: DecisionKind
    why: str
    is_accepted: bool = True
    rules: tuple[RuleResult, ...] = ()
    evidence_digest: str | None = None
    test_digest: str | None = None


def make_decision(
    history: DecisionHistory, alias: str, from_version: str | None, version: ModelVersion, reason: Reason
) -> Decision:
    """Make the record of a new decision about a version."""
    return Decision(
        model=version.name,
        sequence=history.next_sequence,
        id=uuid.uuid4().hex[:8],
        kind=reason.kind,
        alias=alias,
        from_version=from_version,
        to_version=version.number,
        is_accepted=reason.is_accepted,
        who=_who(),
        when=datetime.now(UTC).isoformat(timespec="milliseconds"),
        why=reason.why,
        rules=reason.rules,
        evidence_digest=reason.evidence_digest,
        manifest_digest=version.manifest_digest,
        test_digest=reason.test_digest,
        is_reported=False if reason.kind == "rollback" else None,
    )


def check_reason(text: str) -> str:
    """Return a person's reason in one line.

    Raises:
        InputError: it is empty or too long for a record.
    """
    text = " ".join(text.split())
    if not text:
        raise InputError("--reason: say why, in a few words")
    if len(text) > MAX_REASON_CHARACTERS:
        raise InputError(f"--reason: {len(text):,} characters; at most {MAX_REASON_CHARACTERS:,}")
    return text


def _who() -> str:
    return f"{user_name()}@{socket.gethostname()}"
