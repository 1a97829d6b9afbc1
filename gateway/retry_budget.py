"""How many retries there may be: a share of the requests, so that a broken upstream is not asked twice as
often just when it can take the least (Google SRE, "Handling Overload": 3 tries without a budget make 3 times
the load, 10 % make 1.1 times).
"""

BURST = 20.0
PER_REQUEST = 0.08
CAP = 200.0


class RetryBudget:
    """A token bucket: `burst` retries at first, `per_request` more with each request, `cap` at most saved.

    Of any number of requests at most `burst + per_request * requests` are retried: 100 of the first 1,000.
    Each worker process has its own for each policy and reward model.
    """

    def __init__(self, burst: float = BURST, per_request: float = PER_REQUEST, cap: float = CAP) -> None:
        self._tokens = burst
        self._per_request = per_request
        self._cap = cap

    def deposit(self) -> None:
        """A request that is not a retry."""
        self._tokens = min(self._tokens + self._per_request, self._cap)

    def spend(self) -> bool:
        """Whether one retry is allowed; it is taken."""
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
