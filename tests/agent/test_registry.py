import json
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from processes import PATIENCE

from agent.contract.errors import NotFound, StaleAttempt, StateError
from agent.queue.store import Store
from agent.versions.registry import Registry, Version

ROOT = Path(__file__).parents[2]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def store(home: Path) -> Iterator[Store]:
    with Store(home / "jobs.db") as opened:
        yield opened


@pytest.fixture
def registry(home: Path, store: Store) -> Registry:
    return Registry(home, store)


def publish(registry: Registry, job: int = 1, text: str = "weights") -> int:
    with registry.draft({"job": job, "parent": 0, "figures": {"loss": 1.25}}) as draft:
        (draft.folder / "adapter").mkdir()
        (draft.folder / "adapter" / "adapter_model.safetensors").write_text(text)
        (draft.folder / "README.md").write_text("# a version")
    return draft.number


def damage(home: Path, number: int) -> None:
    """Flip a letter: the size stays."""
    (home / "versions" / str(number) / "adapter" / "adapter_model.safetensors").write_text("weighty"[:7])


def stack(store: Store) -> list[int]:
    return [promotion.version for promotion in store.promotion_stack()]


# ---- versions ----


def test_a_fresh_box_has_the_base_model_as_version_0(registry: Registry) -> None:
    """Before anything was trained the base model is there, whole and active, and says what it is."""
    (version,) = registry.versions()
    assert (version.number, version.whole, version.active) == (0, True, True)
    assert "no adapter" in (registry.folder(0) / "README.md").read_text().lower()
    assert registry.active() == 0


def test_versions_are_numbered_and_carry_what_is_known_about_them(registry: Registry) -> None:
    """Numbers go up by one; what was said about a version is in its manifest and in the list."""
    assert [publish(registry, job) for job in (11, 12)] == [1, 2]
    version = registry.get(2)
    assert version.about == {"job": 12, "parent": 0, "figures": {"loss": 1.25}}
    assert (version.whole, version.active) == (True, False)
    manifest = json.loads((registry.folder(2) / "manifest.json").read_text())
    assert set(manifest["files"]) == {"README.md", "adapter/adapter_model.safetensors"}


def test_a_version_is_only_there_when_it_is_complete(registry: Registry, home: Path) -> None:
    """A failure while it is written leaves no version and no temporary folder, and the number is not used up."""

    def fail() -> None:
        with registry.draft({"job": 1}) as draft:
            (draft.folder / "half").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert [path.name for path in (home / "versions").iterdir()] == ["0"]
    assert publish(registry) == 1


PUBLISH_FIVE = """
import sys
from pathlib import Path
from agent.versions.registry import Registry
from agent.queue.store import Store
home, who = Path(sys.argv[1]), sys.argv[2]
with Store(home / "jobs.db") as store:
    registry = Registry(home, store)
    print("ready", flush=True)
    sys.stdin.read(1)
    for n in range(5):
        with registry.draft({"job": int(who)}) as draft:
            (draft.folder / "adapter").write_text(who)
        print(draft.number)
"""


@pytest.mark.process
def test_processes_that_publish_at_once_never_share_a_number(registry: Registry, home: Path) -> None:
    """Four processes publish five versions each: twenty numbers, each whole and its publisher's own."""
    start_out, start_in = os.pipe()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PUBLISH_FIVE, str(home), str(who)],
            cwd=ROOT,
            stdin=start_out,
            stdout=subprocess.PIPE,
            text=True,
        )
        for who in range(4)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    os.close(start_in)
    told = [process.communicate(timeout=PATIENCE)[0] for process in processes]
    made = {who: [int(number) for number in text.split()] for who, text in enumerate(told)}
    os.close(start_out)
    assert sorted(number for numbers in made.values() for number in numbers) == list(range(1, 21))
    for who, numbers in made.items():
        assert all(registry.get(number).about["job"] == who for number in numbers)
        assert all((registry.folder(number) / "adapter").read_text() == str(who) for number in numbers)


def test_a_number_that_rows_name_is_never_given_out_again(registry: Registry, store: Store) -> None:
    """After a version's folder was deleted its number still means what it meant in the history."""
    publish(registry)
    publish(registry)
    store.push_promotion(2, None)
    for path in sorted(registry.folder(2).rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    registry.folder(2).rmdir()
    assert publish(registry) == 3


def test_the_version_of_a_job_is_found_after_a_crash(registry: Registry, home: Path) -> None:
    """The newest whole version that a job published is found; a broken one does not count."""
    publish(registry, job=5)
    publish(registry, job=6)
    publish(registry, job=5)
    assert registry.find_by_job(5) == 3
    (home / "versions" / "3" / "README.md").unlink()
    assert registry.find_by_job(5) == 1
    assert registry.find_by_job(7) is None


def test_an_unknown_version_points_to_the_list(registry: Registry) -> None:
    """Whatever is asked about a version that does not exist, the message says where to look."""
    for ask in (registry.get, registry.folder, registry.promote):
        with pytest.raises(NotFound, match="there is no version 9; see nslora-agent versions"):
            ask(9)


def test_a_damaged_version_names_the_file(registry: Registry, home: Path) -> None:
    """One changed byte is found although the size is the same, and the file is named."""
    publish(registry, text="weights")
    damage(home, 1)
    with pytest.raises(StateError, match=r"version 1 is damaged: .*adapter_model\.safetensors differs"):
        registry.get(1)


def test_the_list_shows_a_version_that_lost_a_file(registry: Registry, home: Path) -> None:
    """A version with a missing file is still listed, as not whole."""
    publish(registry)
    (home / "versions" / "1" / "README.md").unlink()
    assert [(v.number, v.whole) for v in registry.versions()] == [(0, True), (1, False)]


# ---- promote and rollback ----


def test_promoting_moves_a_relative_link(registry: Registry, home: Path, store: Store) -> None:
    """The link leads to the version by a relative path, so that the state folder can be moved."""
    publish(registry)
    registry.promote(1, job=1)
    assert str((home / "active").readlink()) == "versions/1"
    assert registry.active() == 1
    assert [v.active for v in registry.versions()] == [False, True]
    assert [(p.version, p.job) for p in store.promotion_stack()] == [(1, 1)]


def test_promoting_the_active_version_changes_nothing(registry: Registry, store: Store) -> None:
    """A second promotion of the same version adds nothing to go back to."""
    publish(registry)
    registry.promote(1)
    registry.promote(1)
    assert stack(store) == [1]


def test_a_damaged_version_is_not_promoted(registry: Registry, home: Path, store: Store) -> None:
    """What was active stays active when the new version's files differ from its manifest."""
    publish(registry)
    publish(registry)
    registry.promote(1)
    damage(home, 2)
    with pytest.raises(StateError, match="damaged"):
        registry.promote(2)
    assert (registry.active(), stack(store)) == (1, [1])


def test_each_rollback_goes_one_further_back(registry: Registry) -> None:
    """From the newest to the base model, and no further: the message then says what is active."""
    for number in (1, 2, 3):
        publish(registry)
        registry.promote(number)
    assert [registry.rollback(), registry.rollback(), registry.rollback()] == [2, 1, 0]
    assert registry.active() == 0
    with pytest.raises(NotFound, match="before version 0"):
        registry.rollback()


def test_rollback_goes_to_what_was_active_and_not_to_the_number_below(registry: Registry) -> None:
    """Promoted out of order, with a rollback between, the way back is the way that was taken."""
    for _ in range(3):
        publish(registry)
    registry.promote(3)
    registry.promote(2)
    assert registry.rollback() == 3
    registry.promote(1)
    assert [registry.rollback(), registry.rollback()] == [3, 0]


def test_going_back_to_the_base_model_by_hand_can_be_undone(registry: Registry) -> None:
    """Promoting version 0 is a promotion like any other."""
    publish(registry)
    registry.promote(1)
    registry.promote(0)
    assert registry.active() == 0
    assert registry.rollback() == 1


def test_a_rollback_onto_a_damaged_version_is_refused(registry: Registry, home: Path) -> None:
    """What is active stays active when the version before it is damaged."""
    for number in (1, 2):
        publish(registry)
        registry.promote(number)
    damage(home, 1)
    with pytest.raises(StateError, match="version 1 is damaged"):
        registry.rollback()
    assert registry.active() == 2


def test_a_stale_attempt_cannot_promote(registry: Registry, store: Store) -> None:
    """Neither the link nor the rows change once the job has another attempt; the current one can."""
    store.add("f", "f", 1, 0, "", {}, "base", "numeric")
    stale = store.claim("boot", 1)
    assert stale
    number = publish(registry)
    store.record_death(stale.id, str(stale.token), "killed")
    current = store.claim("boot", 1)
    assert current
    with pytest.raises(StaleAttempt):
        registry.promote(number, stale.id, stale.token)
    assert (registry.active(), stack(store)) == (0, [])
    registry.promote(number, current.id, current.token)
    assert (registry.active(), stack(store)) == (1, [1])


# ---- what others do between the check of a version's files and the transaction ----

Meanwhile = Callable[[Callable[[], object]], None]


@pytest.fixture
def meanwhile(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> Meanwhile:
    """Has something happen once, after the next check of a version's files."""

    def arrange(happen: Callable[[], object]) -> None:
        check, todo = registry.get, [happen]

        def get(number: int) -> Version:
            found = check(number)
            if todo:
                todo.pop()()
            return found

        monkeypatch.setattr(registry, "get", get)

    return arrange


def test_a_version_that_is_pruned_meanwhile_is_not_promoted(
    registry: Registry, home: Path, store: Store, meanwhile: Meanwhile
) -> None:
    """It is not found, and what was active stays so."""
    publish(registry)
    meanwhile(lambda: Registry(home, store).prune(0))
    with pytest.raises(NotFound, match="there is no version 1"):
        registry.promote(1)
    assert (registry.active(), stack(store)) == (0, [])


def test_a_rollback_goes_back_from_what_became_active_meanwhile(
    registry: Registry, home: Path, store: Store, meanwhile: Meanwhile
) -> None:
    """One step from there, onto a version that is checked too."""
    for _ in range(3):
        publish(registry)
    registry.promote(1)
    registry.promote(2)
    meanwhile(lambda: Registry(home, store).promote(3))
    assert registry.rollback() == 2
    assert (registry.active(), stack(store)) == (2, [1, 2])
    meanwhile(lambda: (damage(home, 2), Registry(home, store).promote(3)))
    with pytest.raises(StateError, match="version 2 is damaged"):
        registry.rollback()
    assert (registry.active(), stack(store)) == (3, [1, 2, 3])


def test_a_reader_always_finds_an_active_version(registry: Registry, home: Path) -> None:
    """While versions are promoted back and forth, the link is there at every moment and leads to a version."""
    for number in (1, 2):
        publish(registry)
        registry.promote(number)
    done = threading.Event()
    misses: list[int] = []

    def watch() -> None:
        while not done.is_set():
            misses.extend([1] if not (home / "active" / "manifest.json").is_file() else [])

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(15):
        registry.promote(1)
        registry.promote(2)
    done.set()
    watcher.join()
    assert misses == []


# ---- after a crash ----


def test_a_prune_that_is_killed_before_its_commit_leads_nowhere(
    registry: Registry, store: Store, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folders are set aside and their rows stand; a new start sweeps the one, the next prune the other."""
    for number in (1, 2, 3, 4):
        publish(registry)
        registry.promote(number)

    def killed(self: Path, target: Path) -> None:
        os.rename(self, target)  # noqa: PTH104
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            registry.prune(0)
    assert stack(store) == [1, 2, 3, 4]
    registry.reconcile()
    assert sorted(path.name for path in (home / "versions").iterdir()) == ["0", "2", "3", "4"]
    assert registry.prune(0) == [2]
    assert stack(store) == [3, 4]
    assert [registry.rollback(), registry.rollback()] == [3, 0]


def promote_half(registry: Registry) -> None:
    """The power fails after the link of a promotion, before its row."""
    registry._point(2)


def roll_back_half(registry: Registry) -> None:
    """The power fails after the link of a rollback, before its row."""
    registry._point(0)


@pytest.mark.parametrize(("crash", "active", "rows"), [(promote_half, 2, [1, 2]), (roll_back_half, 0, [])])
def test_reconciling_follows_the_link(
    registry: Registry, store: Store, crash: Callable[[Registry], None], active: int, rows: list[int]
) -> None:
    """Whatever was cut in two is finished on the side of the rows; a second reconcile finds nothing to do."""
    publish(registry, job=11)
    publish(registry, job=12)
    registry.promote(1, job=11)
    crash(registry)
    for _ in range(2):
        registry.reconcile()
        assert (registry.active(), stack(store)) == (active, rows)
    assert all(p.job == p.version + 10 for p in store.promotion_stack()), "the job comes from the manifest"


def test_the_link_is_changed_before_the_row(registry: Registry, store: Store) -> None:
    """When the row of a promotion cannot be written the link has already moved: the link is the truth."""
    publish(registry)
    store._connection.execute(
        "CREATE TRIGGER refuse BEFORE INSERT ON promotions BEGIN SELECT RAISE(ABORT, 'no row'); END"
    )
    with pytest.raises(sqlite3.IntegrityError, match="no row"):
        registry.promote(1)
    assert (registry.active(), stack(store)) == (1, [])
    store._connection.execute("DROP TRIGGER refuse")
    registry.reconcile()
    assert (registry.active(), stack(store)) == (1, [1])


@pytest.mark.parametrize("go_on", ["promote", "rollback"])
def test_the_way_back_survives_a_crash_without_reconcile(registry: Registry, store: Store, go_on: str) -> None:
    """The next promotion or rollback finishes a promotion that was cut in two before it does its own."""
    for _ in range(3):
        publish(registry)
    registry.promote(1)
    registry._point(2)
    if go_on == "promote":
        registry.promote(3)
        assert stack(store) == [1, 2, 3]
    else:
        assert registry.rollback() == 1
        assert stack(store) == [1]


def test_reconciling_an_untouched_registry_changes_nothing(registry: Registry, store: Store, home: Path) -> None:
    """Neither a fresh box nor one with a promotion gets rows or links from it."""
    registry.reconcile()
    assert (stack(store), (home / "active").is_symlink()) == ([], False)
    publish(registry)
    registry.promote(1)
    registry.reconcile()
    assert (stack(store), registry.active()) == ([1], 1)


def test_reconciling_sweeps_what_was_half_written(registry: Registry, home: Path) -> None:
    """Temporary folders and links of killed processes go, versions stay."""
    publish(registry)
    (home / "versions" / ".tmp-new-4711").mkdir()
    (home / "versions" / ".tmp-new-4711" / "half").write_text("half")
    (home / ".tmp-active-4711").symlink_to("versions/1")
    registry.reconcile()
    assert sorted(path.name for path in (home / "versions").iterdir()) == ["0", "1"]
    assert not (home / ".tmp-active-4711").is_symlink()


def dangling(link: Path) -> None:
    link.symlink_to("versions/9")


def foreign(link: Path) -> None:
    link.symlink_to("/tmp")  # noqa: S108  # any folder outside will do


@pytest.mark.parametrize("spoil", [dangling, foreign])
def test_a_link_that_leads_nowhere_says_how_to_mend_it(
    registry: Registry, store: Store, home: Path, spoil: Callable[[Path], None]
) -> None:
    """Every use of it is a StateError naming the command that mends it; that command does, and adds no second row."""
    publish(registry)
    registry.promote(1)
    (home / "active").unlink()
    spoil(home / "active")
    for ask in (registry.active, registry.rollback, registry.reconcile):
        with pytest.raises(StateError, match="mend it with: nslora-agent promote N"):
            ask()
    assert [v.active for v in registry.versions()] == [False, False]
    registry.promote(1)
    assert (registry.active(), stack(store)) == (1, [1])


def test_a_file_in_place_of_the_link_is_not_overwritten(registry: Registry, home: Path) -> None:
    """Something of a person's own is not replaced; the message says to move it away."""
    (home / "active").write_text("mine")
    publish(registry)
    with pytest.raises(StateError, match="is not a link; move it away"):
        registry.promote(1)
    assert (home / "active").read_text() == "mine"
