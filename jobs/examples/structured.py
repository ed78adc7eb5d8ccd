"""An answer as a Python object: the endpoint decodes by the schema, so that it always fits.

python -m jobs.examples.structured --model incidents
"""

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, Field

from jobs.examples.arguments import make_llm, parse


class Triage(BaseModel):
    """What to do about an incident."""

    severity: Literal["Critical", "High", "Medium", "Low"]
    needs_call: bool = Field(description="whether somebody must be woken up")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the example."""
    llm = make_llm(parse(__doc__, arguments))
    triage = llm.with_structured_output(Triage).invoke("The checkout page shows an error to every customer.")
    print(triage)


if __name__ == "__main__":
    main()
