"""A prompt template and the tuned model as a chain: one answer, a stream, a batch, and answers in parallel by asyncio.

python -m jobs.examples.chain --model incidents
"""

import asyncio
from collections.abc import Sequence

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import PromptTemplate

from jobs.examples.arguments import make_llm, parse

# As the rows that the model was tuned on: instruction, empty line, input.
TEMPLATE = "How urgent is this incident? Answer with one word.\n\n{incident}"
INCIDENTS = ("The checkout page shows an error to every customer.", "A typo in the footer of the imprint.")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the example."""
    chain = PromptTemplate.from_template(TEMPLATE) | make_llm(parse(__doc__, arguments)) | StrOutputParser()
    first, *_ = questions = [{"incident": incident} for incident in INCIDENTS]
    print("invoke:", chain.invoke(first))
    print("stream:", *chain.stream(first), sep="|")
    print("batch: ", chain.batch(questions))

    async def ask_all() -> list[str]:
        return list(await asyncio.gather(*(chain.ainvoke(question) for question in questions)))

    print("async: ", asyncio.run(ask_all()))


if __name__ == "__main__":
    main()
