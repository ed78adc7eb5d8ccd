"""The arguments of all examples."""

import argparse
import os
from collections.abc import Sequence

from langchain_openai import ChatOpenAI

MAX_TOKENS = 64


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Make the parser of an example."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--base-url", default="http://127.0.0.1:8000/v1", help="address of the endpoint")
    parser.add_argument("--model", default="incidents", help="name of the registered model")
    parser.add_argument("--max-tokens", type=int, default=MAX_TOKENS, help="maximum length of an answer")
    return parser


def make_llm(options: argparse.Namespace) -> ChatOpenAI:
    """The endpoint as a LangChain model. The API key is taken from OPENAI_API_KEY, if the endpoint needs one."""
    return ChatOpenAI(
        model=options.model,
        base_url=options.base_url,
        api_key=os.environ.get("OPENAI_API_KEY", "none"),
        temperature=0,
        max_tokens=options.max_tokens,
    )


def parse(description: str | None, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the arguments of an example that has no others; None takes those of the program."""
    return make_parser(description).parse_args(arguments)
