"""gateway: how many requests and tokens a key may use in a minute, counted in the memory of one gateway."""

import math
import time

from limits import RateLimitItem, RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter

from instruct_ray.serving.api_keys import ApiKey

REQUESTS, TOKENS = "requests", "tokens"


class KeyLimits:
    """Counts the use of all keys, in minutes that begin with a key's first request."""

    def __init__(self) -> None:
        self._limiter = FixedWindowRateLimiter(MemoryStorage())

    def start_request(self, key: ApiKey) -> int | None:
        """Count a request; returns None, or the seconds to wait if one of the key's limits is reached."""
        if key.tokens_per_minute is not None:
            tokens = RateLimitItemPerMinute(key.tokens_per_minute)
            if not self._limiter.test(tokens, TOKENS, key.name):
                return self._seconds_left(tokens, TOKENS, key)
        if key.requests_per_minute is not None:
            requests = RateLimitItemPerMinute(key.requests_per_minute)
            if not self._limiter.hit(requests, REQUESTS, key.name):
                return self._seconds_left(requests, REQUESTS, key)
        return None

    def add_tokens(self, key: ApiKey, num_tokens: int) -> None:
        """Count tokens of a request, which are known only after its start: its last ones may exceed the limit."""
        if key.tokens_per_minute is not None and num_tokens:
            self._limiter.hit(RateLimitItemPerMinute(key.tokens_per_minute), TOKENS, key.name, cost=num_tokens)

    def _seconds_left(self, limit: RateLimitItem, kind: str, key: ApiKey) -> int:
        reset_time = self._limiter.get_window_stats(limit, kind, key.name).reset_time
        return max(1, math.ceil(reset_time - time.time()))
