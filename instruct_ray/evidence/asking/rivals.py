"""driver: asks other models over HTTP, several questions at a time, and times them."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from urllib.parse import urlsplit

from instruct_ray.config.evidence import EvidenceConfig, RivalConfig
from instruct_ray.data.rendering.contract import Message
from instruct_ray.data.rendering.renderer import Renderer
from instruct_ray.data.sources.triple import Triple
from instruct_ray.errors import InputError
from instruct_ray.evidence.answers import (
    Answer,
    ArmAnswers,
    ArmKind,
    FailedRequest,
    Outcome,
    dump_outcome,
    load_outcome,
)
from instruct_ray.evidence.asking.journal import Journal, make_key
from instruct_ray.evidence.asking.latency import choose_latency_rows, load_latency
from instruct_ray.evidence.asking.rival_client import RivalClient

NUM_AT_ONCE = 8
# An endpoint whose first requests all failed, this many, gets no more.
MAX_FAILURES = 8


class RivalArm:
    """A rival and the chats it answers, one per row."""

    def __init__(
        self, rival: RivalConfig, client: RivalClient, chats: Sequence[list[Message]], evidence: EvidenceConfig
    ) -> None:
        self.name = rival.name
        self._rival, self._client, self._chats = rival, client, chats
        self._max_new_tokens = evidence.max_new_tokens
        self._keys = [make_key(rival.base_url, rival.model, chat, evidence.max_new_tokens) for chat in chats]
        # Not in the journal: a rerun asks again.
        self._failures: dict[str, FailedRequest] = {}
        self._timed = choose_latency_rows(len(chats), evidence.num_latency_rows)
        self.latency_key = make_key("latency", rival.name, [self._keys[index] for index in self._timed])

    @property
    def num_requests(self) -> int:
        """Rows whose requests are timed; none if all failed before."""
        return 0 if self._failures.keys() >= set(self._keys) else len(self._timed)

    def answer(self, journal: Journal, status: Callable[[str], None]) -> None:
        """Ask for the answers that the journal does not have; the first alone, since it may show that none works.

        Raises:
            InputError: the endpoint rejects the API key, or has no such model.
        """
        missing = {key: chat for key, chat in zip(self._keys, self._chats, strict=True) if key not in journal}
        for key in list(missing)[:1]:
            self._record(journal, key, self._ask(missing.pop(key)))
        with ThreadPoolExecutor(NUM_AT_ONCE) as threads:
            asked = {threads.submit(self._ask, chat): key for key, chat in missing.items()}
            try:
                for future in as_completed(asked):
                    self._record(journal, asked[future], future.result())
                    num_answered = sum(key in journal for key in self._keys)
                    status(f"{self.name}: {num_answered}/{len(self._keys)} rows")
                    if not num_answered and len(self._failures) >= MAX_FAILURES:
                        break
            finally:
                threads.shutdown(cancel_futures=True)
        not_asked = FailedRequest(f"not asked: the first {MAX_FAILURES} requests failed")
        self._failures |= {key: not_asked for key in missing if key not in journal and key not in self._failures}

    def collect(self, journal: Journal) -> ArmAnswers:
        """The answers and failures of all rows."""
        outcomes = [load_outcome(journal[key]) if key in journal else self._failures[key] for key in self._keys]
        host = urlsplit(self._rival.base_url).hostname
        description = f"The model {self._rival.model} at {host}, with the row alone."
        latency = load_latency(journal, self.latency_key)
        return ArmAnswers(self.name, ArmKind.RIVAL, description, tuple(outcomes), latency)

    def time_one(self, index: int) -> float | None:
        """The seconds that one request takes; None if it failed."""
        outcome, seconds = self._client.ask(self._chats[self._timed[index]], self._max_new_tokens)
        return None if isinstance(outcome, FailedRequest) else seconds

    def time_many(self, num_at_once: int) -> float | None:
        """The seconds that all timed requests take with `num_at_once` requests in flight; None if one failed."""
        start = time.perf_counter()
        with ThreadPoolExecutor(num_at_once) as threads:
            taken = list(threads.map(self.time_one, range(len(self._timed))))
        return None if None in taken else time.perf_counter() - start

    def _ask(self, chat: list[Message]) -> Outcome:
        return self._client.ask(chat, self._max_new_tokens)[0]

    def _record(self, journal: Journal, key: str, outcome: Outcome) -> None:
        if isinstance(outcome, Answer):
            journal.add([(key, dump_outcome(outcome))])
        else:
            self._failures[key] = outcome


def make_rival_arms(renderer: Renderer, rows: Sequence[Triple], evidence: EvidenceConfig) -> list[RivalArm]:
    """Make the arms of the rivals; they get the same messages as the tuned model, its system message included.

    Raises:
        InputError: the environment variable of an API key is not set, or a row has tools.
    """
    clients = [RivalClient(rival) for rival in evidence.arms]
    with_tools = next((row for row in rows if row.tool_chat is not None), None)
    if clients and with_tools is not None:
        raise InputError(f"evidence.arms: test row {with_tools.id} has tools, which can't be asked of other endpoints")
    chats = [_with_system(renderer, renderer.chat(row)) for row in rows] if clients else []
    return [
        RivalArm(rival, client, chats, evidence) for rival, client in zip(evidence.arms, clients, strict=True)
    ]  # fmt: skip


def _with_system(renderer: Renderer, chat: list[Message]) -> list[Message]:
    prompt = renderer.contract.system_prompt
    return chat if prompt is None or chat[0]["role"] == "system" else [{"role": "system", "content": prompt}, *chat]
