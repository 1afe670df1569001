"""The way to the remote LLM, with everything that keeps it rare: cache, single flight, breaker, caps, audit."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agent.contract import offload_messages
from agent.contract.errors import AgentError, CacheMiss, ConfigError, RemoteRefused
from agent.contract.settings import Offload
from offload.breaker import Breaker
from offload.budget import Budget, DayBudgetSpent, Subject
from offload.cache import Cache, Messages, Question, Recorded
from offload.database import transaction
from offload.owner import process_name
from offload.retries import LONGEST_RETRY_AFTER, LONGEST_WAIT, RemoteUnavailable

if TYPE_CHECKING:
    import sqlite_utils

    from offload.client import Client, Reply

LEASE_MARGIN = LONGEST_RETRY_AFTER + LONGEST_WAIT + 30.0
"""Seconds a lease outlives one try: the longest wait before the next one, which renews it, and slow disks."""
POLL = 0.2
"""Seconds between looks at an answer that another process is asking for."""
HAPPENED = re.compile(
    r"the remote LLM at \S+ (?:(?P<status>answers [0-9]{3})"
    r"|(?P<timeout>gave no whole answer|took no connection|was silent)"
    r"|(?P<connection>cannot be talked to(?:: \[(?:Errno -?[0-9]+\] [A-Za-z ]+|SSL: [A-Z_]+\]))?)"
    r"|(?P<unreadable>sent no answer to read)"
    r"|(?P<oversized>sent more than [0-9]+ bytes))"
)
"""Where an error of the client begins: what happened in our own words, and none of the server's."""

OnTry = Callable[[int, RemoteUnavailable | None], None]
MakeClient = Callable[[OnTry], "Client"]


@dataclass
class Cost:
    """The cost of one rewrite so far: HTTP requests, tokens, money; `cached` while nothing was sent.

    `critique` is what its step was told to mend.
    """

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    money: float = 0.0
    critique: str = ""

    @property
    def is_cached(self) -> bool:
        """True if every answer came out of the cache."""
        return self.calls == 0


class Remote:
    """Answers questions from the cache at `database`, and those it lacks from the endpoint in `settings`.

    `make_client` (see `offload.client.Client` for its argument) is called at the first miss, so that a worker that
    only serves hits opens no socket and reads no key.
    """

    def __init__(
        self,
        database: sqlite_utils.Database,
        settings: Offload,
        make_client: MakeClient,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings, self._make_client, self._clock = settings, make_client, clock
        limit = settings.cache_mb * 1_000_000
        self.cache = Cache(database, limit, any_endpoint=settings.mode == "cache-only", clock=clock)
        self.budget = Budget(database, settings, clock)
        self.breaker = Breaker(database, clock, self._lease_seconds)
        self._database = database
        self._client: Client | None = None
        self._tries: Tries | None = None
        self._next_day: float | None = None
        self._owner = process_name()

    def question(self, messages: Messages) -> Question:
        """The key of what these messages ask for under the present settings."""
        parameters = {"max_tokens": self._settings.max_tokens, "temperature": self._settings.temperature}
        return Question(self._settings.base_url.rstrip("/"), self._settings.model, parameters, messages)

    def look_up(self, subject: Subject, messages: Messages) -> Recorded | None:
        """The answer if it is in the cache, noted in the audit."""
        question = self.question(messages)
        with transaction(self._database):
            found = self.cache.get(question)
            if found:
                self.budget.note_hit(subject, question.replay)
        return found

    def ask(self, subject: Subject, messages: Messages, cost: Cost) -> Recorded:
        """The answer from the cache or from the remote LLM, adding to `cost`.

        Raises CacheMiss in mode cache-only, RemoteUnavailable, RemoteRefused, or BudgetSpent.
        """
        found = self.look_up(subject, messages)
        if found:
            return found
        question = self.question(messages)
        self._check_mode(subject)
        while not self.cache.lease(question.key, self._owner, self._lease_seconds):
            time.sleep(POLL)
            if found := self.look_up(subject, messages):
                return found
        try:
            # Whoever held the lease until just now may have recorded the answer.
            return self.look_up(subject, messages) or self._fetch(subject, question, cost)
        finally:
            self.cache.release(question.key, self._owner)

    def ping(self, messages: Messages) -> tuple[Reply, float]:
        """One round trip outside of cache and breaker, but within the caps; returns the reply and its money."""
        subject = Subject(0, "", ("test",))
        self._check_mode(subject)
        tries = Tries(self.budget, subject, self.question(messages), Cost(), lambda: None)
        reply = self._call(tries)
        with transaction(self._database):
            tries.settle_reply(reply)
            self.breaker.record_success()
        return reply, tries.cost.money

    def status(self, job: int = 0) -> offload_messages.Remote:
        """The state of the remote and the spend, today and for a job."""
        standing, today, whole = self.breaker.read(), self.budget.today(), self.budget.job(job)
        return offload_messages.Remote(
            breaker=standing.state(self._clock()),
            failures=standing.failures,
            reason=standing.reason,
            retry_at=max(filter(None, (standing.until, self._next_day)), default=None),
            requests_today=today.requests,
            tokens_today=today.tokens,
            money_today=round(today.money, 6),
            requests_job=whole.requests,
            tokens_job=whole.tokens,
            money_job=round(whole.money, 6),
        )

    @property
    def _lease_seconds(self) -> float:
        return self._settings.total_timeout + LEASE_MARGIN

    def _check_mode(self, subject: Subject) -> None:
        if self._settings.mode == "cache-only":
            where = f"example {subject.example!r}" if subject.example else "this request"
            raise CacheMiss(f"no recorded answer for {where}; import it, or set mode to remote")
        if not self._settings.base_url or not self._settings.model:
            raise ConfigError("no remote LLM is set: nslora-agent offload set --base-url URL --model NAME")

    def _fetch(self, subject: Subject, question: Question, cost: Cost) -> Recorded:
        if not self.breaker.allow():
            standing = self.breaker.read()
            wait = (standing.until or 0.0) - self._clock()
            raise RemoteUnavailable(
                f"left alone after {standing.failures} failures ({standing.reason})", retry_after=wait
            )
        tries = Tries(self.budget, subject, question, cost, lambda: self._renew(question))
        try:
            reply = self._call(tries)
            with transaction(self._database):
                # Together: what the audit calls answered is recorded, whenever the process dies.
                tries.settle_reply(reply)
                self.breaker.record_success()
                return self.cache.add(question, reply.text, reply.prompt_tokens or 0, reply.completion_tokens or 0)
        except RemoteUnavailable as fault:
            # The host and what happened, for people, without what the server said about it.
            happened = HAPPENED.match(str(fault))
            self.breaker.record_failure(happened[0] if happened else "it failed", fault.retry_after or 0.0)
            raise
        except RemoteRefused:
            self.breaker.record_success()  # it does answer
            raise
        except AgentError as fault:
            self.breaker.abandon()
            if isinstance(fault, DayBudgetSpent):
                self._next_day = self.budget.next_day()
            raise

    def _call(self, tries: Tries) -> Reply:
        """The remote's reply; every try has a row of its own in the audit, reserved before and settled after.

        The last try is left to the caller to settle, together with what it does with the reply.
        """
        self._tries = tries
        if self._client is None:
            self._client = self._make_client(self._begin_try)
        try:
            return self._client.complete(tries.question.messages, tries.question.parameters)
        except (RemoteUnavailable, RemoteRefused) as fault:
            tries.settle_failure(fault)
            raise

    def _begin_try(self, number: int, failure: RemoteUnavailable | None) -> None:
        """The one client calls this for every call's tries."""
        if self._tries:
            self._tries.begin(number, failure)

    def _renew(self, question: Question) -> None:
        with transaction(self._database):
            self.cache.lease(question.key, self._owner, self._lease_seconds)
            self.breaker.renew()


class Tries:
    """The rows of one call in the audit; `renew` is called before every try but the first."""

    def __init__(
        self, budget: Budget, subject: Subject, question: Question, cost: Cost, renew: Callable[[], None]
    ) -> None:
        self.question, self.cost = question, cost
        self._budget, self._subject, self._renew = budget, subject, renew
        self._row: int | None = None
        self._began = 0.0

    def begin(self, _number: int, failure: RemoteUnavailable | None) -> None:
        """Reserve the next try, after settling the one that failed. Raises BudgetSpent."""
        if failure:
            self.settle_failure(failure)
            self._renew()
        self._row = self._budget.reserve(self._subject, self.question.replay, self.question.messages)
        self.cost.calls += 1
        self._began = time.monotonic()

    def settle_reply(self, reply: Reply) -> None:
        """Settle the last try by what the remote says it took."""
        names = ("prompt_tokens", "completion_tokens", "bytes_out", "bytes_in")
        self._end("ok", {name: getattr(reply, name) for name in names}, billed=True)
        self.cost.prompt_tokens += reply.prompt_tokens or 0
        self.cost.completion_tokens += reply.completion_tokens or 0

    def settle_failure(self, fault: RemoteUnavailable | RemoteRefused) -> None:
        """Settle the try that is under way, if there is one."""
        self._end(outcome(fault), {}, billed=isinstance(fault, RemoteUnavailable) and fault.billed)

    def _end(self, outcome: str, figures: dict[str, Any], *, billed: bool) -> None:
        if self._row is None:
            return
        seconds = {"seconds": round(time.monotonic() - self._began, 3)}
        self.cost.money += self._budget.settle(self._row, outcome, {**figures, **seconds}, billed=billed)
        self._row = None


def outcome(fault: RemoteUnavailable | RemoteRefused) -> str:
    """The name of a failed try in the audit: never the server's words, which may quote the prompt."""
    what = "refused" if isinstance(fault, RemoteRefused) else "failed"
    happened = HAPPENED.match(str(fault))
    if not happened:
        return what
    status = happened["status"]
    return f"{what} {status[-3:]}" if status else str(happened.lastgroup)
