from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from remotes import SETTINGS, SUBJECT, Clock, asked, cache_of, finished, opened, remote_at, rows, said, start

from agent.contract.errors import Busy, CacheMiss, DataError, StateError
from agent.contract.offload_messages import CacheImport, Open, RewriteExample
from offload import cache as caching
from offload import database as databases
from offload.cache import Cache, Question
from offload.commands import Commands, _is_step_of
from offload.redact import Redactor
from offload.rewrite import first_messages

ANSWER = "Yes. <IMPROVED_VARIABLE>mended</IMPROVED_VARIABLE>"
LIMIT = 1_000_000

# ---- keys ----


def test_the_key_is_of_everything_an_answer_depends_on() -> None:
    """Endpoint, model, parameters and messages, not the order of the parameters; the replay key knows no endpoint."""
    one = Question("http://a/v1", "m", {"x": 1, "y": 2.0}, said("hi"))
    others = [
        dataclasses.replace(one, model="n"),
        dataclasses.replace(one, parameters={"x": 1, "y": 2.5}),
        dataclasses.replace(one, messages=said("hi ")),
        dataclasses.replace(one, messages=[{"role": "system", "content": "hi"}]),
        dataclasses.replace(one, messages=said("hi") * 2),
    ]
    elsewhere = dataclasses.replace(one, endpoint="http://b/v1")
    assert len({q.key for q in (one, elsewhere, *others)}) == 7
    assert len({q.replay for q in (one, *others)}) == 6
    assert elsewhere.replay == one.replay
    assert dataclasses.replace(one, parameters={"y": 2.0, "x": 1}).key == one.key


def test_an_answer_comes_back_as_it_was_recorded(tmp_path: Path) -> None:
    """With what TextGrad's step made of it, which is noted once."""
    with opened(tmp_path) as database:
        cache = cache_of(database)
        assert cache.get(asked("q")) is None
        put = cache.add(asked("q"), ANSWER, 7, 3)
        assert cache.get(asked("q")) == put
        cache.note_text(put.key, "mended")
        size = cache.figures()["bytes"]
        cache.note_text(put.key, "mended")
        assert cache.get(asked("q")) == dataclasses.replace(put, text="mended")
        assert cache.figures()["bytes"] == size
        assert cache.get(asked("q", "http://elsewhere/v1")) is None
        assert not cache.has(asked("q", "http://elsewhere/v1"))


# ---- hits ----

HITS = """
from offload.commands import Commands
from agent.contract.offload_messages import Open, RewriteExample
connected = []
sys.addaudithook(lambda event, _: connected.append(event) if event in ("socket.connect", "socket.__new__") else None)
commands = Commands()
commands.handle(Open(str(path), settings), print)
written, request = [], RewriteExample(**json.load(open(sys.argv[1] + "/request.json")))
commands._remote._database.conn.set_trace_callback(lambda sql: written.append(sql) if sql == "COMMIT" else None)
for _ in range(200):
    answer = commands.handle(request, print)
    assert (answer.outcome, answer.text, answer.cached, answer.calls) == ("rewritten", "mended", True, 0), answer
print(json.dumps([len(written), sorted(name.partition(".")[0] for name in sys.modules), connected]))
"""


@pytest.mark.process
@pytest.mark.parametrize("mode", ["remote", "cache-only"])
def test_a_hit_costs_one_commit_and_imports_nothing_heavy(fast_disk: Path, mode: str) -> None:
    """Whole rewrites in a running worker, redaction included, with 1,000 answers recorded; no socket is made.

    The commit is nearly all of a hit's time, some milliseconds on a good disk.
    """
    request = RewriteExample(1, "example-1", "reference", "text", "Which port?", ["Say yes."], ["no yes"], "", ["yes"])
    (fast_disk / "request.json").write_text(json.dumps(dataclasses.asdict(request)))
    with remote_at(fast_disk, "http://127.0.0.1:1/v1") as remote, databases.transaction(remote._database):
        for number in range(1000):
            remote.cache.add(asked(f"question {number}"), ANSWER, 7, 3)
        recorded = remote.cache.add(remote.question(first_messages(request, Redactor(()))), ANSWER, 7, 3)
        remote.cache.note_text(recorded.key, "mended")
    (line,) = finished(start(fast_disk, HITS, "http://127.0.0.1:1/v1", mode=mode))
    commits, modules, connected = json.loads(line)
    assert commits == 200
    assert not {"textgrad", "httpx", "httpcore", "litellm", "openai", "torch"} & set(modules)
    assert connected == []
    assert rows(fast_disk, "SELECT outcome, count(*) AS n FROM calls") == [{"outcome": "cached", "n": 200}]


def test_cache_only_misses_loudly_and_hits_whatever_the_endpoint(tmp_path: Path) -> None:
    """Nothing but a recorded answer will do; the error says which example and what to do."""
    with opened(tmp_path) as database:
        cache_of(database).add(asked("known", "http://recorded/v1"), ANSWER, 7, 3)
    with remote_at(tmp_path, "", mode="cache-only") as remote:
        assert remote.look_up(SUBJECT, said("known")).answer == ANSWER
        with pytest.raises(CacheMiss, match="no recorded answer for example 'example-1'; import it, or set mode to"):
            remote.ask(SUBJECT, said("unknown"), None)
        with pytest.raises(CacheMiss, match="for this request"):
            remote.ping(said("ready?"))
        assert remote._client is None


def test_of_several_endpoints_answers_a_replay_takes_the_same_everywhere(tmp_path: Path) -> None:
    """Whatever the order they came in or were used in."""
    endpoints = [f"http://{name}/v1" for name in "abcd"]
    found = set()
    for number, order in enumerate((endpoints, endpoints[::-1])):
        with opened(tmp_path / str(number)) as database:
            for endpoint in order:
                cache_of(database).add(asked("q", endpoint), f"of {endpoint}", 1, 1)
            found.add(cache_of(database, any_endpoint=True).get(asked("q", "http://other/v1")))
    assert len(found) == 1


# ---- size ----


def kept(cache: Cache) -> list[str]:
    return sorted(row["messages"][0]["content"] for row in cache.rows())


def test_the_least_recently_used_answers_go_first(tmp_path: Path) -> None:
    """A hit counts as a use, `known` and an export do not; a clock that is put back does not matter."""
    clock = Clock()
    with opened(tmp_path) as database:
        cache = Cache(database, LIMIT, any_endpoint=False, clock=clock)
        for name in "abcd":
            clock.now -= 1000
            cache.add(asked(name), ANSWER, 7, 3)
        size = cache.figures()["bytes"] // 4
        assert cache.get(asked("a"))
        assert cache.has(asked("b"))
        assert kept(cache) == ["a", "b", "c", "d"]
        small = Cache(database, 3 * size, any_endpoint=False, clock=clock)
        small.add(asked("e"), ANSWER, 7, 3)
        assert kept(small) == ["a", "d", "e"]


def test_a_text_that_is_noted_makes_room_too(tmp_path: Path) -> None:
    """The bound holds after every write, not only after the next answer."""
    with opened(tmp_path) as database:
        cache_of(database).add(asked("a"), ANSWER, 7, 3)
        limit = 2 * cache_of(database).figures()["bytes"]
        cache = cache_of(database, limit)
        cache.note_text(cache.add(asked("b"), ANSWER, 7, 3).key, "mended")
        assert kept(cache) == ["b"]
        assert cache.figures()["bytes"] <= limit


def test_an_answer_larger_than_the_cache_costs_no_other_its_place(tmp_path: Path) -> None:
    """It is handed on, not recorded."""
    with opened(tmp_path) as database:
        cache = cache_of(database, 10_000)
        cache.add(asked("a"), ANSWER, 7, 3)
        assert cache.add(asked("b"), "x" * 10_000, 7, 3).answer == "x" * 10_000
        assert kept(cache) == ["a"]


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 1500), st.booleans()), max_size=25))
def test_the_cache_is_what_a_model_of_it_says(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, bool]]
) -> None:
    """Any puts and gets: never more bytes than the limit, and exactly the most recently used ones are there."""
    limit, model = 5000, dict[str, int]()
    with opened(tmp_path_factory.mktemp("cache")) as database:
        cache = cache_of(database, limit)
        for name, length, get in steps:
            if get:
                assert (cache.get(asked(name)) is not None) == (name in model)
                if name in model:
                    model[name] = model.pop(name)
                continue
            model.pop(name, None)
            cache.add(asked(name), "x" * length, 7, 3)
            (row,) = database.query("SELECT bytes FROM answers WHERE key = ?", (asked(name).key,))
            model[name] = row["bytes"]
            while sum(model.values()) > limit:
                del model[next(iter(model))]
            figures = cache.figures()
            assert figures["bytes"] == sum(model.values()) <= limit
            assert kept(cache) == sorted(model)


def test_the_file_is_not_much_larger_than_the_bound(tmp_path: Path) -> None:
    """Keys and indices are counted, and the place of an evicted answer is used again."""
    limit = 400_000
    with opened(tmp_path) as database:
        cache = cache_of(database, limit)
        with databases.transaction(database):
            for number in range(1500):
                cache.add(asked(f"question {number}"), "x" * (number % 700), 7, 3)
        assert limit - 3000 < cache.figures()["bytes"] <= limit
    size = (tmp_path / "cache.db").stat().st_size
    print(f"{size} bytes on the disk for a bound of {limit}")
    assert size < 1.3 * limit


def test_pruning_forgets_what_was_long_not_used(tmp_path: Path) -> None:
    """By the clock, and says how much that was."""
    clock = Clock()
    with opened(tmp_path) as database:
        cache = Cache(database, LIMIT, any_endpoint=False, clock=clock)
        cache.add(asked("old"), ANSWER, 7, 3)
        cache.add(asked("used"), ANSWER, 7, 3)
        clock.now += 100
        assert cache.get(asked("used"))
        assert cache.prune(101) == (0, 0)
        before = cache.figures()
        assert before["oldest"] == clock.now - 100
        assert before["hits"] == 1
        gone, size = cache.prune(100 - 1)
        assert (gone, kept(cache)) == (1, ["used"])
        assert cache.figures()["bytes"] == before["bytes"] - size


# ---- leases ----


def test_a_lease_is_one_owners_until_it_expires(tmp_path: Path) -> None:
    """Others get it when it is released or over; its owner may renew it; it does not outlast a clock put back."""
    clock = Clock()
    with opened(tmp_path) as database:
        cache = Cache(database, LIMIT, any_endpoint=False, clock=clock)
        assert cache.lease("k", "a", 10)
        assert cache.lease("other", "b", 10)
        assert not cache.lease("k", "b", 10)
        assert not cache.lease("k", "b", 1)
        clock.now += 6
        assert cache.lease("k", "a", 10)
        clock.now += 9
        assert not cache.lease("k", "b", 10)
        cache.release("k", "b")
        assert not cache.lease("k", "b", 10)
        clock.now += 1
        assert cache.lease("k", "b", 10)
        cache.release("k", "b")
        assert cache.lease("k", "a", 10)
        clock.now -= 86_400
        assert cache.lease("k", "b", 10)


def test_the_clock_is_read_after_the_wait_for_the_database(tmp_path: Path) -> None:
    """Else a lease that was taken during the wait would look like one from the future, and be taken away."""
    with opened(tmp_path) as database:

        def clock() -> float:
            assert database.conn.in_transaction
            return 0.0

        assert Cache(database, LIMIT, any_endpoint=False, clock=clock).lease("k", "a", 10)


def test_leases_of_the_dead_are_swept(tmp_path: Path) -> None:
    """Those that nobody asks for again do not stay in the database for ever."""
    clock = Clock()
    with opened(tmp_path) as database:
        cache = Cache(database, LIMIT, any_endpoint=False, clock=clock)
        for number in range(5):
            cache.lease(str(number), "dead", 10)
        clock.now += 10
        cache.lease("k", "a", 10)
        assert database["leases"].count == 1


# ---- export and import ----


def exported(path: Path) -> bytes:
    """A file of three answers: with a text, without one, and in another script."""
    with opened(path) as database:
        cache = cache_of(database)
        cache.note_text(cache.add(asked("a"), ANSWER, 7, 3).key, "mended")
        cache.add(asked("b"), "plain", 0, 2**40)
        cache.add(asked("c \u2028 \x00 grüße 日本"), "<IMPROVED_VARIABLE>ß\n\u2028</IMPROVED_VARIABLE>", 1, 1)
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in cache.rows()).encode()


def import_rows(path: Path, data: bytes, limit: int = LIMIT) -> list[int]:
    with opened(path) as database:
        return cache_of(database, limit).import_rows(io.BytesIO(data), Path("file.jsonl"), _is_step_of)


def test_an_export_replays_elsewhere(tmp_path: Path) -> None:
    """Into an empty database: the same answers and texts for another endpoint, and the same export again."""
    data = exported(tmp_path / "one")
    assert import_rows(tmp_path / "two", data) == [3, 0]
    assert import_rows(tmp_path / "two", data + data) == [6, 6]
    with opened(tmp_path / "one") as one, opened(tmp_path / "two") as two:
        assert list(cache_of(one).rows()) == list(cache_of(two).rows())
        for row in cache_of(one).rows():
            question = Question("http://elsewhere/v1", row["model"], row["parameters"], row["messages"])
            recorded = cache_of(one, any_endpoint=True).get(question)
            assert recorded is not None
            assert cache_of(two, any_endpoint=True).get(question) == recorded


def test_the_worker_imports_a_file(tmp_path: Path) -> None:
    """What the command does, with a real file."""
    (tmp_path / "file.jsonl").write_bytes(exported(tmp_path / "one"))
    commands = Commands()
    commands.handle(Open(str(tmp_path / "two" / "cache.db"), SETTINGS), print)
    answer = commands.handle(CacheImport(str(tmp_path / "file.jsonl")), print)
    assert (answer.rows, answer.known) == (3, 0)


def changed(**changes: Any) -> Callable[[bytes], bytes]:
    return lambda line: json.dumps({**json.loads(line), **changes}).encode()


def without(name: str) -> Callable[[bytes], bytes]:
    return lambda line: json.dumps({key: value for key, value in json.loads(line).items() if key != name}).encode()


MANIPULATED: dict[str, Callable[[bytes], bytes]] = {
    "a text that is not in the answer": changed(answer=ANSWER, text="planted"),
    "a text of an answer without tags": changed(answer="mended", text="mended"),
    "a text that is a number": changed(text=5),
    "a text that is a list": changed(text=["mended"]),
    **{f"{name} missing": without(name) for name in caching.EXPORTED},
    **{f"{name} null": changed(**{name: None}) for name in caching.EXPORTED if name != "text"},
    "an answer that is a number": changed(answer=1, text=None),
    "half a surrogate pair": changed(answer="\ud800", text=None),
    "half a surrogate pair in a message": changed(messages=said("\udfff")),
    "NUL": changed(answer="a\0b", text=None),
    "a negative count": changed(prompt_tokens=-1),
    "a huge count": changed(prompt_tokens=10**30),
    "a count that is true": changed(completion_tokens=True),
    "a count with a fraction": changed(completion_tokens=1.5),
    "parameters that are pairs": changed(parameters=[["max_tokens", 16]]),
    "a parameter that is no number of JSON": changed(parameters={"temperature": float("nan")}),
    "messages that are a string": changed(messages="hi"),
    "no message": changed(messages=[]),
    "a message that is a string": changed(messages=["hi"]),
    "a message without a role": changed(messages=[{"content": "hi"}]),
    "a message with more": changed(messages=[{"role": "user", "content": "hi", "name": "x"}]),
    "a message of parts": changed(messages=[{"role": "user", "content": ["hi"]}]),
    "a list": lambda line: b"[" + line.strip() + b"]",
    "a number": lambda _: b"5",
    "a number of 9,000 digits": lambda _: b"5" * 9000,
    "null": lambda _: b"null",
    "an empty line": lambda _: b"",
    "half a line": lambda line: line[:50],
    "nested 9,000 deep": lambda _: b"[" * 9000,
    "binary": lambda _: bytes(range(256)).replace(b"\n", b""),
    "UTF-16": lambda line: line.decode().encode("utf-16"),
}


@pytest.mark.slow
@pytest.mark.parametrize("manipulate", MANIPULATED.values(), ids=MANIPULATED)
def test_a_manipulated_line_is_named_and_nothing_is_imported(
    tmp_path: Path, manipulate: Callable[[bytes], bytes]
) -> None:
    """One line of error for the second of three lines, and the database as it was."""
    first, second, third = exported(tmp_path / "one").splitlines(keepends=True)
    with pytest.raises(DataError, match=r"^file\.jsonl line 2 is no exported answer[^\n]*\Z"):
        import_rows(tmp_path / "two", first + manipulate(second).replace(b"\n", b"") + b"\n" + third)
    assert rows(tmp_path / "two", "SELECT * FROM answers") == []


def test_a_planted_key_counts_for_nothing(tmp_path: Path) -> None:
    """Keys are computed from what a row says it answers; further fields are not stored."""
    line = changed(key="0" * 64, replay="0" * 64, bytes=0, hits=99)(exported(tmp_path / "one").splitlines()[0])
    assert import_rows(tmp_path / "two", line) == [1, 0]
    ((before,), (after,)) = (
        rows(tmp_path / name, "SELECT key, hits FROM answers WHERE answer = ?", json.loads(line)["answer"])
        for name in ("one", "two")
    )
    assert before == after


def test_a_line_that_is_too_long_is_not_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file without newlines must not fill the memory."""
    monkeypatch.setattr(caching, "LONGEST_LINE", 10_000)
    stream = io.BytesIO(b'{"answer": "' + b"x" * 1_000_000)
    with opened(tmp_path) as database, pytest.raises(DataError, match="line 1 is no exported answer"):
        cache_of(database).import_rows(stream, Path("file.jsonl"), _is_step_of)
    assert stream.tell() == 10_000


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    """Somebody named the wrong file."""
    with pytest.raises(DataError, match=r"file\.jsonl is empty"):
        import_rows(tmp_path, b"")


def test_more_than_the_cache_may_hold_is_refused(tmp_path: Path) -> None:
    """A replay would miss what was imported first and evicted by what came last."""
    data = exported(tmp_path / "one")
    with pytest.raises(DataError, match=r"file\.jsonl line 3 is more than the cache may hold; raise cache_mb"):
        import_rows(tmp_path / "two", data, 1500)
    assert rows(tmp_path / "two", "SELECT * FROM answers") == []


# ---- the database ----


def test_only_the_owner_may_read_it(tmp_path: Path) -> None:
    """It holds the box's own text."""
    with opened(tmp_path / "new"):
        assert (tmp_path / "new" / "cache.db").stat().st_mode & 0o777 == 0o600


@pytest.mark.process
def test_sixteen_processes_make_it_together(tmp_path: Path) -> None:
    """Each finds it whole."""
    script = """
for _ in range(16):
    if os.fork() == 0:
        os._exit(new_remote().cache.figures()["answers"])
for _ in range(16):
    assert os.wait()[1] == 0
"""
    finished(start(tmp_path, script))


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    """In one line, with what to do."""
    (tmp_path / "cache.db").write_bytes(b"garbage" * 1000)
    with (
        pytest.raises(StateError, match=r"cache\.db cannot be read .*; move it away or restore it[^\n]*\Z"),
        opened(tmp_path),
    ):
        pass


def test_a_database_that_goes_bad_is_named_by_reads_too(tmp_path: Path) -> None:
    """Every statement, also those outside of a transaction."""
    with remote_at(tmp_path) as remote:
        remote._database.execute("DROP TABLE breaker")
        remote._database.execute("DROP TABLE answers")
        for read in (remote.status, remote.cache.figures, lambda: list(remote.cache.rows())):
            with pytest.raises(StateError, match=r"cache\.db cannot be read"):
                read()


def test_a_database_in_use_for_long_is_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an error that is tried again; reading goes on."""
    monkeypatch.setattr(databases, "BUSY_TIMEOUT", 0.05)
    with remote_at(tmp_path) as remote, opened(tmp_path) as other, databases.transaction(other):
        assert remote.status().failures == 0
        with pytest.raises(Busy, match="in use by another program"):
            remote.look_up(SUBJECT, said("q"))


def test_what_a_transaction_wrote_is_gone_if_it_fails(tmp_path: Path) -> None:
    """Nested blocks are one."""
    with opened(tmp_path) as database:
        cache = cache_of(database)

        def fail() -> None:
            with databases.transaction(database):
                cache.add(asked("a"), ANSWER, 7, 3)
                with databases.transaction(database):
                    cache.add(asked("b"), ANSWER, 7, 3)
                raise KeyError

        with pytest.raises(KeyError):
            fail()
        assert kept(cache) == []
        cache.add(asked("a"), ANSWER, 7, 3)
    assert len(rows(tmp_path, "SELECT * FROM answers")) == 1
