"""Admission: how much is generated at once, who waits, and what each API key may use.

A request asks with a `Ticket` and gets all of its candidate slots (best_of times its prompts) or none. Who
finds no room waits in order of arrival, so that small requests cannot starve a large one; the queue and the
wait are bounded, and beyond them the answer is a 503 with a Retry-After, at once. A key over its own
allowance gets a 429 that says when to come back, before it can take a place in the queue.

A refusal costs nothing: a refused request uses up none of its key's rate, nor does one that was turned away
or left while it waited, so that a client that keeps to Retry-After gets in, and its own early retries cannot
push it back. Tokens are charged when a request ends, by what it really used. They can go below zero, by at
most what the key's requests under way generate; then the key waits until they are above it again.

`Desk` is one process's; it knows nothing of metrics (see `gateway.metered`) and of HTTP.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Literal, Protocol

import msgspec

from gateway.allowance import Account, Allowance, Rate
from gateway.config import Limits
from gateway.errors import GatewayError, InvalidRequestError, OverloadedError, RateLimitError

Reason = Literal[
    "queue_full", "queue_timeout", "retry_shed", "key_rate", "key_tokens", "key_concurrency", "key_too_large"
]
BUSY = "The gateway is at its limit. Come back after the time in Retry-After."
MESSAGES: dict[Reason, str] = {
    "queue_full": BUSY,
    "queue_timeout": BUSY,
    "retry_shed": BUSY,
    "key_rate": "This API key's requests per minute are used up. Come back after the time in Retry-After.",
    "key_tokens": "This API key's tokens per day are used up. Come back after the time in Retry-After.",
    "key_concurrency": "This API key has as many candidates under way as it may. Wait until some are done.",
    "key_too_large": "This asks for more candidates at once than this API key may have under way.",
}
RETRY_AFTER_S = 1
"""Where nobody can know when there will be room."""
FORGET_ABOVE = 64
"""Accounts that are kept without a look at which of them could be forgotten."""


class Ticket(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a request asks for."""

    slots: int
    key: str | None = None
    """The API key's id."""
    allowance: Allowance | None = None
    """What that key may use; None is without limit."""
    max_wait_s: float | None = None
    """The longest wait where that is shorter than the limit's own: the client's deadline is nearer."""
    retry: bool = False
    """The client tries again what was refused; when the queue is half full it gives way to first tries."""


class Refusal(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why a ticket was not granted; `error` is how the client hears of it."""

    reason: Reason
    retry_after: int | None = RETRY_AFTER_S
    """Whole seconds; None where coming back is of no use."""
    rate: Rate = Rate()

    def error(self) -> "RefusedError":
        """The error to raise."""
        return ERRORS.get(self.reason, SaturatedError)(self)


class RefusedError(GatewayError):
    """A ticket was not granted. Subclasses say with which status."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(MESSAGES[refusal.reason], retry_after=refusal.retry_after)
        self.refusal = refusal

    def headers(self) -> dict[str, str]:
        """With the key's rate."""
        return super().headers() | self.refusal.rate.headers()


class SaturatedError(RefusedError, OverloadedError):
    """503: the gateway is full."""


class AllowanceError(RefusedError, RateLimitError):
    """429 `rate_limit_exceeded`: the key's own rate or concurrency."""


class QuotaError(AllowanceError):
    """429 `insufficient_quota`: the key's tokens."""

    code = "insufficient_quota"


class TooLargeError(RefusedError, InvalidRequestError):
    """400: it could never be granted to this key."""

    code = "too_many_candidates"


ERRORS: dict[Reason, type[RefusedError]] = {
    "key_rate": AllowanceError,
    "key_concurrency": AllowanceError,
    "key_tokens": QuotaError,
    "key_too_large": TooLargeError,
}


@dataclass
class Grant:
    """What the holder of slots gets."""

    queue_s: float = 0.0
    """How long it waited."""
    rate: Rate = field(default_factory=Rate)
    """Where its key stands."""
    tokens: int = 0
    """Charged so far; its key pays when the hold ends."""
    account: Account | None = None
    """The key's, where the desk of this process keeps it."""

    def charge(self, tokens: int) -> None:
        """Note tokens that were used."""
        self.tokens += max(tokens, 0)


class Admission(Protocol):
    """Who grants tickets: a Desk in this process, or one that several processes share."""

    def hold(self, ticket: Ticket) -> AbstractAsyncContextManager[Grant]:
        """Hold what the ticket asks for during the block.

        Raises:
            OverloadedError: the queue is full, or the wait took too long.
            RateLimitError: the key's own allowance is used up.
            InvalidRequestError: the ticket asks for more than its key could ever have.
        """

    def resize(self, limits: Limits) -> None:
        """Go by other limits from now on; what is held stays held."""


class Hold:
    """The block during which a ticket's slots are held. A class, because a generator costs four times as
    much and there is one of these per request."""

    __slots__ = ("_desk", "_grant", "_ticket")

    def __init__(self, desk: "Desk", ticket: Ticket) -> None:
        self._desk = desk
        self._ticket = ticket
        self._grant: Grant

    async def __aenter__(self) -> Grant:
        self._grant = await self._desk.enter(self._ticket)
        return self._grant

    async def __aexit__(self, *_: object) -> None:
        self._desk.leave(self._ticket, self._grant)


@dataclass(eq=False)
class _Waiter:
    slots: int
    turn: asyncio.Future[None]


class Desk:
    """A first-come, first-served semaphore with weights, and the accounts of keys."""

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._used = 0
        self._queue: deque[_Waiter] = deque()
        self._accounts: dict[str, Account] = {}
        self._forget_above = FORGET_ABOVE

    @property
    def used(self) -> int:
        """Slots that are held."""
        return self._used

    @property
    def waiting(self) -> int:
        """Tickets in the queue."""
        return len(self._queue)

    @property
    def accounts(self) -> int:
        """Keys that are remembered."""
        return len(self._accounts)

    def resize(self, limits: Limits) -> None:
        """See `Admission`."""
        self._limits = limits
        self._admit()

    def hold(self, ticket: Ticket) -> "Hold":
        """See `Admission`."""
        return Hold(self, ticket)

    async def enter(self, ticket: Ticket) -> Grant:
        """Take what the ticket asks for, see `hold`; whoever gets it must `leave` with it."""
        account = None
        if ticket.key is not None and ticket.allowance is not None:
            account = self._open(ticket.key, ticket.allowance, ticket.slots)
        try:
            queue_s = await self._take(ticket)
        except BaseException:
            if account is not None and ticket.allowance is not None:
                account.turn_away(ticket.allowance)
                account.leave(ticket.allowance, ticket.slots, 0, self._clock())
            raise
        if account is None or ticket.allowance is None:
            return Grant(queue_s)
        return Grant(queue_s, account.rate(ticket.allowance, self._clock()), account=account)

    def leave(self, ticket: Ticket, grant: Grant) -> None:
        """Give it back; the key pays."""
        self._give_back(ticket.slots)
        if grant.account is not None and ticket.allowance is not None:
            grant.account.leave(ticket.allowance, ticket.slots, grant.tokens, self._clock())

    def _open(self, key: str, allowance: Allowance, slots: int) -> Account:
        """The key's account, with this request entered into it."""
        account = self._accounts.get(key) or Account()
        now = self._clock()
        refusal = _judge(account, allowance, slots, now)
        if refusal is not None:
            raise refusal.error()
        account.enter(allowance, slots, now)
        self._accounts[key] = account
        if len(self._accounts) > self._forget_above:
            self._accounts = {name: kept for name, kept in self._accounts.items() if not kept.is_new(now)}
            self._forget_above = max(FORGET_ABOVE, 2 * len(self._accounts))
        return account

    async def _take(self, ticket: Ticket) -> float:
        """Seconds that it took."""
        if not self._queue and self._fits(ticket.slots):
            self._used += ticket.slots
            return 0.0
        asked_at = self._clock()
        await self._wait(ticket)
        return self._clock() - asked_at

    def _fits(self, slots: int) -> bool:
        """Whether there is room. Who is larger than the limit, since that was lowered, runs alone."""
        return self._used + slots <= self._limits.max_concurrent_candidates or self._used == 0

    async def _wait(self, ticket: Ticket) -> None:
        if len(self._queue) >= self._limits.max_queue:
            raise Refusal(reason="queue_full").error()
        if ticket.retry and 2 * len(self._queue) > self._limits.max_queue:
            raise Refusal(reason="retry_shed").error()
        waiter = _Waiter(ticket.slots, asyncio.get_running_loop().create_future())
        self._queue.append(waiter)
        longest = self._limits.max_queue_wait_s
        try:
            async with asyncio.timeout(
                longest if ticket.max_wait_s is None else min(longest, ticket.max_wait_s)
            ):
                await waiter.turn
        except BaseException as error:
            self._leave(waiter)
            if isinstance(error, TimeoutError):
                raise Refusal(reason="queue_timeout").error() from None
            raise

    def _leave(self, waiter: _Waiter) -> None:
        """A waiter gives up; its turn may have come at the very same moment."""
        if waiter.turn.done() and not waiter.turn.cancelled():
            self._give_back(waiter.slots)
        else:
            waiter.turn.cancel()
            self._admit()

    def _admit(self) -> None:
        """Let in whom there is room for, in order; who was cancelled may still stand in the queue."""
        self._queue = deque(waiter for waiter in self._queue if not waiter.turn.done())
        while self._queue and self._fits(self._queue[0].slots):
            waiter = self._queue.popleft()
            self._used += waiter.slots
            waiter.turn.set_result(None)

    def _give_back(self, slots: int) -> None:
        self._used -= slots
        self._admit()


def _judge(account: Account, allowance: Allowance, slots: int, now: float) -> Refusal | None:
    """Why this key may not have `slots` now."""
    most = allowance.max_concurrent_candidates
    if most is not None and slots > most:
        return Refusal(reason="key_too_large", retry_after=None)
    rate = account.rate(allowance, now)
    waits: list[tuple[float, Reason]] = [
        (account.token_wait_s(allowance, now), "key_tokens"),
        (account.request_wait_s(allowance, now), "key_rate"),
    ]
    wait_s, reason = max(waits, key=lambda wait: wait[0])  # who comes back must not run into the other one
    if wait_s:
        return Refusal(reason=reason, retry_after=math.ceil(wait_s), rate=rate)
    if not account.has_room(allowance, slots):
        return Refusal(reason="key_concurrency", rate=rate)
    return None
