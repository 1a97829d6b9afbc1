"""Whether a client takes what waits for it, however slowly it pretends to."""

STALL_BYTES = 64 * 1024
"""What it must take in the time that it has, or all that waits."""


class Stall:
    """Watches bytes that wait to be sent while none are added. A client may take any time for all of them,
    but no longer than `longest_s` for each 64 KiB."""

    def __init__(self, longest_s: float) -> None:
        self._longest_s = longest_s
        self._since: float | None = None
        self._unsent = 0

    def clear(self) -> None:
        """Nothing waits, or more is being added, which would look like no progress."""
        self._since = None

    def is_over(self, unsent: int, now: float) -> bool:
        """Note what waits now; whether it has waited too long."""
        if self._since is None or unsent + STALL_BYTES <= self._unsent:
            self._since, self._unsent = now, unsent
        return now - self._since >= self._longest_s
