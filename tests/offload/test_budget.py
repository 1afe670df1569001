from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from llm_server import Act, LLMServer, Request, completion, ending, failing, head, saying, sending
from remotes import SETTINGS, SUBJECT, Clock, finished, opened, said, start

from agent.contract.errors import BudgetSpent
from offload import budget as budgets
from offload.budget import Budget, DayBudgetSpent, JobBudgetSpent, Spent, Subject

DAY = 86_400.0
MIDNIGHT = 1_700_006_400.0
"""Seconds: 2023-11-15 00:00 UTC."""
HI = said("hi")
MOST_TOKENS = 2 + budgets.TEMPLATE_TOKENS + SETTINGS.max_tokens
"""What is put aside for HI."""


def settled(budget: Budget, subject: Subject = SUBJECT, prompt: int | None = 5, answer: int | None = 2) -> float:
    row = budget.reserve(subject, "request", HI)
    return budget.settle(row, "ok", {"prompt_tokens": prompt, "completion_tokens": answer}, billed=True)


# ---- one process ----


def test_a_request_counts_in_full_until_it_is_settled(tmp_path: Path) -> None:
    """Reserved: the most it may take; then what it took; nothing but itself if nothing was billed."""
    with opened(tmp_path) as database:
        budget = Budget(database, replace(SETTINGS, price_in=10.0, price_out=20.0))
        row = budget.reserve(SUBJECT, "request", HI)
        assert budget.today() == Spent(1, MOST_TOKENS, pytest.approx((66 * 10 + 16 * 20) / 1e6))
        money = budget.settle(row, "ok", {"prompt_tokens": 5, "completion_tokens": 2}, billed=True)
        assert money == pytest.approx((5 * 10 + 2 * 20) / 1e6)
        assert budget.today() == Spent(1, 7, pytest.approx(money))
        row = budget.reserve(SUBJECT, "request", HI)
        assert budget.settle(row, "failed 503", {}, billed=False) == 0.0
        assert budget.today() == Spent(2, 7, pytest.approx(money))


@pytest.mark.parametrize("counts", [(None, None), (None, 2), (5, None)])
def test_what_is_not_known_counts_in_full(tmp_path: Path, counts: tuple[int | None, int | None]) -> None:
    """A server that does not say what it billed, or an answer that broke off."""
    with opened(tmp_path) as database:
        budget = Budget(database, replace(SETTINGS, price_in=10.0))
        assert settled(budget, SUBJECT, *counts) == budget.today().money > 0
        assert budget.today().tokens == MOST_TOKENS


@pytest.mark.parametrize("text", ["", "hi", "grüße 日本 🎉", "a" * 3000])
def test_the_bytes_of_a_prompt_bound_what_is_put_aside(tmp_path: Path, text: str) -> None:
    """A byte-level tokenizer never makes more tokens than there are bytes."""
    with opened(tmp_path) as database:
        budget = Budget(database, SETTINGS)
        budget.reserve(SUBJECT, "request", [{"role": "system", "content": text}, *said(text)])
        assert budget.today().tokens == 2 * len(text.encode()) + budgets.TEMPLATE_TOKENS + SETTINGS.max_tokens


CAPS = {
    "requests": {"requests": 3},
    "tokens": {"tokens": MOST_TOKENS + 14},
    "money": {"money": (MOST_TOKENS + 14) / 1e6},
}


@pytest.mark.parametrize("name", CAPS)
@pytest.mark.parametrize(("what", "error"), [("job", JobBudgetSpent), ("day", DayBudgetSpent)])
def test_a_cap_is_refused_before_the_request(tmp_path: Path, name: str, what: str, error: type[BudgetSpent]) -> None:
    """Three calls of 7 tokens fit, a fourth does not; the error names the setting, and nothing is put aside."""
    caps = {f"{name}_per_{what}": value for name, value in CAPS[name].items()}
    with opened(tmp_path) as database:
        budget = Budget(database, replace(SETTINGS, price_in=1.0, price_out=1.0, **caps))
        for _ in range(3):
            settled(budget)
        with pytest.raises(error, match=f"the {what}'s cap of .* raise {name}_per_{what} in config.toml") as caught:
            settled(budget)
        assert type(caught.value) is error
        assert budget.today().requests == 3


def test_a_cap_is_shown_in_plain_digits(tmp_path: Path) -> None:
    """As it stands in config.toml."""
    with opened(tmp_path) as database:
        budget = Budget(database, replace(SETTINGS, tokens_per_job=10_000_000, max_tokens=30_000))
        row = budget.reserve(SUBJECT, "request", HI)
        budget.settle(row, "ok", {"prompt_tokens": 4_999_000, "completion_tokens": 0}, billed=True)
        with pytest.raises(DayBudgetSpent, match=r"cap of 5000000 tokens is reached \(4999000 used, .* take 30066\)"):
            budget.reserve(SUBJECT, "request", HI)


@pytest.mark.parametrize("name", ["requests", "tokens", "money"])
def test_a_request_larger_than_the_days_cap_waits_for_no_day(tmp_path: Path, name: str) -> None:
    """Tomorrow it would be refused again, and the day after."""
    caps: dict[str, Any] = {f"{name}_per_day": 0}
    with opened(tmp_path) as database, pytest.raises(JobBudgetSpent, match=f"raise {name}_per_day in config.toml"):
        Budget(database, replace(SETTINGS, price_in=1.0, **caps)).reserve(SUBJECT, "request", HI)


def test_a_job_that_has_spent_its_own_budget_waits_for_no_day(tmp_path: Path) -> None:
    """Where both caps are reached, the job's is said."""
    with opened(tmp_path) as database:
        budget = Budget(database, replace(SETTINGS, requests_per_job=1, requests_per_day=1))
        settled(budget)
        with pytest.raises(JobBudgetSpent):
            settled(budget)
        with pytest.raises(DayBudgetSpent):
            settled(budget, replace(SUBJECT, job=2))


def test_what_is_for_no_job_has_no_jobs_cap(tmp_path: Path) -> None:
    """Round trips by hand would else be used up once and for all."""
    with opened(tmp_path) as database:
        budget = Budget(database, replace(SETTINGS, requests_per_job=1, requests_per_day=2))
        by_hand = Subject(0, "", ("test",))
        settled(budget, by_hand)
        settled(budget, by_hand)
        with pytest.raises(DayBudgetSpent):
            settled(budget, by_hand)


def test_a_day_ends_at_midnight_utc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the local time zone; what was reserved before belongs to the day before, also when it is settled."""
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        clock = Clock(MIDNIGHT - 0.001)
        with opened(tmp_path) as database:
            budget = Budget(database, replace(SETTINGS, requests_per_day=1), clock)
            row = budget.reserve(SUBJECT, "request", HI)
            assert budget.next_day() == MIDNIGHT
            with pytest.raises(DayBudgetSpent):
                budget.reserve(SUBJECT, "request", HI)
            clock.now = budget.next_day()
            assert budget.today() == Spent(0, 0, 0.0)
            assert budget.next_day() == MIDNIGHT + DAY
            budget.settle(row, "ok", {"prompt_tokens": 1, "completion_tokens": 1}, billed=True)
            assert budget.today() == Spent(0, 0, 0.0)
            settled(budget)
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_request_is_counted_on_the_day_it_was_checked_on(tmp_path: Path) -> None:
    """The clock is read once: midnight may fall between the check and the row."""
    with opened(tmp_path) as database:
        times = iter([MIDNIGHT - 0.001, *[MIDNIGHT + 0.001] * 9])
        Budget(database, SETTINGS, lambda: next(times)).reserve(SUBJECT, "request", HI)
        assert [row["day"] for row in database["calls"].rows] == ["2023-11-14"]


def test_the_log_is_the_newest_rows_oldest_first(tmp_path: Path) -> None:
    """With the example's id hashed, and reasons as they were given."""
    clock = Clock()
    with opened(tmp_path) as database:
        budget = Budget(database, SETTINGS, clock)
        for number in range(5):
            budget.note_hit(replace(SUBJECT, example=f"Ann {number}"), f"request {number}")
        first, second = budget.log(2)
        assert [first["request"], second["request"]] == ["request 3", "request 4"]
        assert (first["outcome"], first["at"], first["why"]) == ("cached", clock.now, ["starts_with"])
        assert first["example"] == budgets.hash_id("Ann 3")
        assert "Ann" not in json.dumps(budget.log(9))
        assert len(budget.log(9)) == 5


# ---- fifty processes ----

FIFTY = """
import httpx
living = set()
for number in range(50):
    pid = os.fork()
    if pid == 0:
        remote = new_remote()
        for call in range(1000):
            try:
                ask(remote, f"{number % 2} {number} {call}", job=1 + number % 2)
            except BudgetSpent:
                os._exit(0)
            except AgentError as fault:
                pass
        os._exit(1)
    living.add(pid)
database, ends = open_database(path), []
while database["calls"].count < 20:
    time.sleep(0.02)
for victim in random.Random(1).sample(sorted(living), 20):
    time.sleep(random.uniform(0, 0.06))
    os.kill(victim, signal.SIGKILL)
while living:
    pid, status = os.wait()
    living.discard(pid)
    ends.append(os.waitstatus_to_exitcode(status))
print(json.dumps(ends))
"""


@dataclass
class Server:
    """A script that fails often, and counts what it really served, by job."""

    prices: tuple[float, float]
    lock: threading.Lock = field(default_factory=threading.Lock)
    served: dict[tuple[str, str], float] = field(default_factory=lambda: defaultdict(float))

    def __call__(self, request: Request) -> Act:
        """One of four kinds of answer, which depends on the prompt alone."""
        with self.lock:
            rng = random.Random(request.prompt)
            kind = rng.choices(["ok", "503", "cut", "uncounted"], [70, 12, 10, 8])[0]
            sent, received = len(request.prompt.encode()) + rng.randrange(60), rng.randint(1, 16)
            self._count(f"job {1 + int(request.prompt.split()[0])}", kind, sent, received)
        time.sleep(rng.uniform(0.03, 0.12))
        if kind == "503":
            return failing(503)
        usage = {"usage": {"prompt_tokens": sent, "completion_tokens": received}}
        if kind == "cut":
            return sending(head(500) + json.dumps(completion("a", **usage)).encode()[:100], then=ending)
        return saying("a", **(usage if kind == "ok" else {"usage": None}))

    def _count(self, job: str, kind: str, sent: int, received: int) -> None:
        for scope in (job, "day"):
            self.served[scope, "requests"] += 1
            if kind != "503":
                self.served[scope, "tokens"] += sent + received
                self.served[scope, "money"] += (sent * self.prices[0] + received * self.prices[1]) / 1e6

    def snapshot(self) -> dict[tuple[str, str], float]:
        """What was served until now."""
        with self.lock:
            return dict(self.served)


def audited(database: Any) -> dict[tuple[str, str], float]:
    sums = "sum(requests) AS requests, sum(tokens) AS tokens, sum(money) AS money"
    job, day = f"SELECT 'job ' || job AS scope, {sums} FROM calls GROUP BY 1", f"SELECT 'day', {sums} FROM calls"  # noqa: S608
    found = database.query(f"{job} UNION ALL {day}")
    return {(row["scope"], name): row[name] or 0 for row in found for name in ("requests", "tokens", "money")}


def watched(path: Path, server: Server, running: Callable[[], bool]) -> dict[tuple[str, str], float]:
    """The largest sums in the audit, looked at all the time; what was served is never more than them."""
    largest: dict[tuple[str, str], float] = {}
    with opened(path) as database:
        again = True
        while again:
            again = running()
            # In this order: a request is put aside before it is served.
            served, sums = server.snapshot(), audited(database)
            assert all(served[key] <= sums[key] + 1e-9 for key in served)
            largest = {key: max(sums[key], largest.get(key, 0)) for key in sums}
            time.sleep(0.005)
    return largest


FIFTY_CAPS = {
    "requests": {"requests_per_job": 110, "requests_per_day": 200},
    "tokens": {"tokens_per_job": 5_500, "tokens_per_day": 10_000},
    "money": {"money_per_job": 0.065, "money_per_day": 0.12},
}


@pytest.mark.process
@pytest.mark.parametrize(
    "name", ["money", *(pytest.param(name, marks=pytest.mark.exhaustive) for name in ("requests", "tokens"))]
)
def test_fifty_processes_never_exceed_a_cap(fast_disk: Path, name: str) -> None:
    """Of two jobs; twenty are killed at random moments, and the server fails, breaks off or does not count.

    Neither what the audit says nor what the server really served is ever more than a cap, at any moment.
    """
    caps: dict[str, Any] = FIFTY_CAPS[name]
    script = Server((10.0, 20.0))
    with LLMServer(script) as server:
        process = start(fast_disk, FIFTY, server.url, price_in=10.0, price_out=20.0, attempts=2, **caps)
        largest = watched(fast_disk, script, lambda: process.poll() is None)
        (line,) = finished(process)
    ends = Counter(json.loads(line))
    scopes = {"day": caps[f"{name}_per_day"], **dict.fromkeys(("job 1", "job 2"), caps[f"{name}_per_job"])}
    for scope, cap in scopes.items():
        served = script.served[scope, name]
        print(f"{name} of {scope}: cap {cap}, largest sum in the audit {largest[scope, name]:.9g}, served {served:.9g}")
        assert served <= largest[scope, name] <= cap
    assert largest["day", name] > 0.9 * scopes["day"], "the cap was not put to the test"
    with opened(fast_disk) as database:
        found = Counter(row["outcome"] for row in database["calls"].rows)
    print(f"{dict(found)}, processes ended {dict(ends)}")
    assert ends[-9] > 10
    assert ends[0] + ends[-9] == 50
    assert found["reserved"] > 0
    assert found["failed 503"] > 0
    assert found["connection"] > 0
