"""`evidence.json` equals what other code computes from `answers.jsonl` alone, by other libraries and formulas."""

import json
import math
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import beta, binomtest, norm
from sklearn.metrics import f1_score
from statsmodels.stats.proportion import proportion_confint

from instruct_ray.evidence.results.files import write_results
from tests.evidence.results.synthetic import build, draw_arm, make_rows

ARMS = (("zero_shot", 0.3, 60), ("few_shot_3", 0.6, 180), ("tuned", 0.85, 60), ("champion", 0.8, 60))


@pytest.fixture
def results(tmp_path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The evidence, and the lines of the answers, as read from the files."""
    rows = make_rows(210)
    arms = [draw_arm(rows, name, accuracy, tokens, seed) for seed, (name, accuracy, tokens) in enumerate(ARMS)]
    file = tmp_path / "evidence.json"
    write_results(file, build(rows, arms), rows, arms)
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    return json.loads(file.read_text()), lines


def is_right(line: dict[str, Any], arm: str) -> bool:
    return bool(line["answers"][arm]["text"].lower() == line["expected"].lower())


def test_figures_of_each_arm(results: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
    evidence, lines = results
    assert list(evidence["arms"]) == [name for name, _, _ in ARMS]
    for name, arm in evidence["arms"].items():
        right = sum(is_right(line, name) for line in lines)
        answers = [line["answers"][name] for line in lines]
        lower, upper = proportion_confint(right, len(lines), method="wilson")
        assert (arm["accuracy"], arm["accuracy_lower"], arm["accuracy_upper"]) == pytest.approx(
            (right / len(lines), lower, upper)
        )
        tokens = sum(answer["prompt_tokens"] + answer["completion_tokens"] for answer in answers)
        assert arm["tokens_per_right_answer"] == pytest.approx(tokens / right)
        assert arm["prompt_tokens"] == np.mean([answer["prompt_tokens"] for answer in answers])
        labels = ["high", "low", "medium"]
        texts, expected = ([text.lower() for text in column] for column in (
            [answer["text"] for answer in answers], [line["expected"] for line in lines]
        ))  # fmt: skip
        f1 = f1_score(expected, texts, labels=labels, average="macro")
        assert arm["scores"] == {"macro_f1": pytest.approx(f1)}
        counts = Counter(zip(expected, texts, strict=True))
        assert arm["confusion"]["labels"] == labels
        assert [row[:3] for row in arm["confusion"]["counts"]] == [[counts[a, b] for b in labels] for a in labels]


def tango_bounds(only_a: int, only_b: int, num_rows: int) -> tuple[float, float]:
    """The differences whose score is within ±1.96, by bisection; the nuisance share by maximizing the likelihood."""

    def is_inside(difference: float) -> bool:
        # Shares of "only b" and, with the difference, of "only a".
        def loss(share: float) -> float:
            shares = (share + difference, share, 1 - 2 * share - difference)
            counts = (only_a, only_b, num_rows - only_a - only_b)
            return -sum(count * math.log(max(part, 1e-300)) for count, part in zip(counts, shares, strict=True))

        bounds = (max(0.0, -difference), (1 - difference) / 2)
        share = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-10}).x
        variance = num_rows * (2 * share + difference - difference**2)
        return bool(abs(only_a - only_b - num_rows * difference) <= norm.ppf(0.975) * math.sqrt(variance))

    found = []
    for end in (-0.999, 0.999):
        inside, outside = (only_a - only_b) / num_rows, end
        for _ in range(40):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if is_inside(middle) else (inside, middle)
        found.append(inside)
    return found[0], found[1]


def test_comparisons(results: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
    evidence, lines = results
    assert list(evidence["comparisons"]) == ["tuned - zero_shot", "tuned - few_shot_3", "tuned - champion"]
    for name in ("few_shot_3", "champion"):
        pairs = Counter((is_right(line, "tuned"), is_right(line, name)) for line in lines)
        only_tuned, only_other = pairs[True, False], pairs[False, True]
        found = evidence["comparisons"][f"tuned - {name}"]
        assert found["estimate"] == pytest.approx((only_tuned - only_other) / 210)
        assert (found["num_rows"], found["num_discordant"]) == (210, only_tuned + only_other)
        exact = binomtest(min(only_tuned, only_other), only_tuned + only_other).pvalue
        point = math.comb(only_tuned + only_other, only_tuned) / 2 ** (only_tuned + only_other)
        assert found["p_value"] == pytest.approx(exact - point)
        assert (found["lower"], found["upper"]) == pytest.approx(tango_bounds(only_tuned, only_other, 210), abs=1e-5)


def test_verdict_and_cost(results: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
    evidence, lines = results
    prompting = {name: np.mean([is_right(line, name) for line in lines]) for name in ("zero_shot", "few_shot_3")}
    verdict, cost = evidence["verdict"], evidence["cost"]
    assert verdict["best_arm"] == max(prompting, key=lambda name: prompting[name])
    lowers = [evidence["comparisons"][f"tuned - {name}"]["lower"] for name in prompting]
    assert verdict["outcome"] == "tune" and min(lowers) > 0.02
    sizes = {
        name: np.mean(
            [line["answers"][name]["prompt_tokens"] + line["answers"][name]["completion_tokens"] for line in lines]
        )
        for name in ("tuned", "few_shot_3")
    }
    saved = sizes["few_shot_3"] - sizes["tuned"]
    assert cost["saved_tokens_per_request"] == pytest.approx(saved)
    assert cost["break_even_requests"] == math.ceil(3 * 90_000 / saved)
    assert "3 × trained tokens" in cost["rule"]


def test_slices(results: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
    evidence, lines = results
    members: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        members["instruction", line["instruction"]].append(line)
        members["label", line["expected"].lower()].append(line)
    # All prompts have the same length, which makes no slices.
    assert {(one["kind"], one["name"]) for one in evidence["slices"]} == members.keys()
    for one in evidence["slices"]:
        rows = members[one["kind"], one["name"]]
        assert one["num_rows"] == len(rows)
        shares = {name: np.mean([is_right(line, name) for line in rows]) for name, _, _ in ARMS}
        assert one["accuracies"] == pytest.approx(shares)
        assert one["comparison"]["estimate"] == pytest.approx(shares["tuned"] - shares["few_shot_3"])


def test_latency_bounds_are_order_statistics(results: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
    rows = make_rows(210)
    for seed, (name, accuracy, tokens) in enumerate(ARMS):
        latency = draw_arm(rows, name, accuracy, tokens, seed).latency
        assert latency is not None
        seconds, found = sorted(latency.seconds), results[0]["arms"][name]["latency"]
        assert found["num_requests"] == 80 and found["p95"]["num_needed"] == 72
        for key, share in (("p50", 0.5), ("p95", 0.95)):
            assert found[key]["value"] == pytest.approx(np.quantile(seconds, share))
            places = [seconds.index(found[key][bound]) + 1 for bound in ("lower", "upper")]
            # P(the place-th smallest of 80 values is above, or below, the quantile).
            assert beta.sf(share, places[0], 81 - places[0]) <= 0.025
            assert beta.cdf(share, places[1], 81 - places[1]) <= 0.025
