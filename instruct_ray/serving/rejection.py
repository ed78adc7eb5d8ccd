"""replica: an error that ends the answer to a request before it begins."""

from instruct_ray.serving.replica_messages import RequestError


class RejectedRequestError(Exception):
    """A request that can't be answered."""

    def __init__(self, status: int, message: str, param: str, code: str) -> None:
        super().__init__(message)
        self.error = RequestError(status, message, param, code)
