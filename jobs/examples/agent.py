"""An agent with a tool: the model asks for a calculation, LangChain carries it out, and the model answers with it.

The model must be tuned on chats with tools, and its chat template must support them.

python -m jobs.examples.agent --model calculator --question "What is 2 + 3?"
"""

from collections.abc import Sequence
from typing import Literal

from langchain.agents import create_agent
from langchain_core.tools import tool

from jobs.examples.arguments import make_llm, make_parser


@tool
def calculate(a: int, operator: Literal["+", "-", "*"], b: int) -> int:
    """Calculate with two whole numbers."""
    return {"+": a + b, "-": a - b, "*": a * b}[operator]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the example."""
    parser = make_parser(__doc__)
    parser.add_argument("--question", default="What is 2 + 3?", help="what to ask")
    options = parser.parse_args(arguments)
    agent = create_agent(make_llm(options), [calculate])
    result = agent.invoke({"messages": [{"role": "user", "content": options.question}]})
    for message in result["messages"]:
        calls = [f"{call['name']}({call['args']})" for call in message.tool_calls] if message.type == "ai" else []
        print(f"{message.type}: {' '.join([message.text, *calls]).strip()}")


if __name__ == "__main__":
    main()
