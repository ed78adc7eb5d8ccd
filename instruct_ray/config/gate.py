"""The `registry.gate` section: what the evidence of a version must show before the alias moves to it."""

from typing import Literal

from pydantic import Field, PositiveInt

from instruct_ray.config.section import Section

RuleName = Literal["accuracy", "prompting", "champion", "slices", "contract", "general_skill", "test_rows"]


class GateConfig(Section):
    """Rules that a version must pass. Null turns a rule off. Differences are fractions: 0.02 is two points."""

    min_accuracy: float | None = Field(default=None, ge=0, le=1)
    """Minimum accuracy of the tuned model."""
    margin: float = Field(default=0.02, ge=-1, lt=1)
    """The lower bound of the interval of tuned minus the best prompting arm must be above this; the default is that of
    `evidence.margin`."""
    champion_margin: float | None = Field(default=0.0, ge=-1, lt=1)
    """The lower bound of the interval of tuned minus the standing champion must be above this. Negative values accept a
    version that is a little worse."""
    max_slice_loss: float | None = Field(default=0.1, gt=0, le=1)
    """No slice of the test rows may be worse than the best prompting arm by this much."""
    max_skill_loss: float | None = Field(default=None, gt=0, le=1)
    """No benchmark of general skill may fall by more than this."""
    allow_contract_change: bool = False
    """Whether the version may have another prompt contract (template, system prompt, tokenizer) than the champion."""
    max_decisions: PositiveInt | None = 20
    """How many versions may be decided on with the same test rows. Test rows that choose often enough are fitted."""
    allow_unjudged: tuple[RuleName, ...] = ("slices",)
    """Rules that may pass although their input is missing or has too few rows."""
