"""lm-eval against an endpoint, as jobs/README.md says: its requests are those that the endpoint of `serve` takes."""

import json
from typing import Any

import pytest
from datasets import Dataset
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from instruct_ray.serving.chat_request import ChatRequest
from tests.evidence.asking.fake_rival import FakeRival, Reply, completion, serve_rival

QUESTIONS = [{"question": "Capital of France?", "answer": "Paris"}, {"question": "Capital of Italy?", "answer": "Rome"}]


def answer(body: dict[str, Any], number: int) -> Reply:
    status, values, headers = completion("Paris")
    # lm-eval reads no body of another type.
    return status, values, headers | {"Content-Type": "application/json"}


def ask(rival: FakeRival, **task: Any) -> dict[str, Any]:
    config = {
        "task": "capitals",
        "custom_dataset": lambda **_: {"test": Dataset.from_list(QUESTIONS)},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    results: dict[str, Any] = simple_evaluate(
        model="local-chat-completions",
        model_args=f"model=tiny,base_url={rival.base_url}/chat/completions,num_concurrent=2",
        tasks=[config | task],
        apply_chat_template=True,
        bootstrap_iters=0,
        task_manager=TaskManager(include_defaults=False),
    )
    return results


@pytest.mark.parametrize("until", [["\n\n"], []])
def test_requests_are_those_that_the_endpoint_takes(until: list[str]) -> None:
    with serve_rival(answer) as rival:
        results = ask(rival, generation_kwargs={"until": until, "do_sample": False, "max_gen_toks": 8})
    assert results["results"]["capitals"]["exact_match,none"] == 0.5
    requests = [ChatRequest.model_validate_json(json.dumps(body)) for body in rival.requests]
    assert sorted(str(request.messages[-1].content) for request in requests) == [one["question"] for one in QUESTIONS]
    assert {(request.model, request.temperature, request.max_tokens) for request in requests} == {("tiny", 0.0, 8)}


def test_log_likelihood_is_refused_by_lm_eval() -> None:
    with serve_rival(answer) as rival, pytest.raises(NotImplementedError, match="not supported for chat completions"):
        ask(rival, output_type="multiple_choice", doc_to_choice=["Paris", "Rome"], doc_to_target="{{answer}}")
