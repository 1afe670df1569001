"""The registry of versions: what training made, and which version is active.

    versions/<n>/   one published version each, its manifest written last; 0 is the base model as it came
    active          a relative link to versions/<n>: the one truth about what is promoted

The stack of promotions in jobs.db only knows what was active before. The link is changed first and the row
after it, so that a power cut between the two leaves rows that `reconcile` can bring into line.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.contract.atomic_io import (
    TEMPORARY,
    folder_fault,
    fsync_path,
    publish_folder,
    read_manifest,
    remove_tree,
    sweep_temporaries,
    temporary_beside,
)
from agent.contract.errors import NotFound, StateError
from agent.contract.os_errors import disk_faults
from agent.queue.store import Store

BASE = 0
"""The version that is the base model itself."""
BASE_README = """# Version 0: the base model as it came

No adapter and no figures: nothing was trained. Promoting it switches every adapter off.
"""


@dataclass(frozen=True)
class Version:
    """One version: `about` is its manifest without the list of files, empty where there is none to read."""

    number: int
    about: dict[str, Any]
    whole: bool
    active: bool


@dataclass
class Draft:
    """A version in the making: its folder, and the number that it has once it is published."""

    folder: Path
    number: int = field(init=False, repr=False)


class Registry:
    """The versions below `home` and the link to the active one; the promotions are rows of `store`."""

    def __init__(self, home: Path, store: Store) -> None:
        self._versions = home / "versions"
        self._link = home / "active"
        self._store = store
        with disk_faults(self._versions):
            self._versions.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not (self._versions / str(BASE)).exists():
                self._publish_base()

    # ---- making and finding versions ----

    @contextmanager
    def draft(self, about: dict[str, Any]) -> Iterator[Draft]:
        """Publish what the block writes into the draft's folder as a new version, when the block ends.

        `about` goes into the manifest; its "job" is what `find_by_job` looks for. A block that raises leaves
        nothing behind. Raises StorageError or StateError.
        """
        draft = Draft(temporary_beside(self._versions / "new"))
        with disk_faults(self._versions):
            remove_tree(draft.folder)
            draft.folder.mkdir(mode=0o700)
            try:
                yield draft
                draft.number = self._publish(draft.folder, about)
            finally:
                remove_tree(draft.folder)

    def _publish(self, temporary: Path, about: dict[str, Any]) -> int:
        """Publish under the next free number; returns it."""
        while True:
            number = 1 + max(self._store.last_version(), *self._numbers())
            if self._publish_as(number, temporary, about):
                return number

    def _publish_as(self, number: int, temporary: Path, about: dict[str, Any]) -> bool:
        """Publish under this number; False if another process was faster."""
        try:
            publish_folder(temporary, self._versions / str(number), about)
        except OSError as fault:
            if fault.errno in {errno.ENOTEMPTY, errno.EEXIST}:
                return False
            raise
        return True

    def _publish_base(self) -> None:
        temporary = temporary_beside(self._versions / str(BASE))
        remove_tree(temporary)
        temporary.mkdir(mode=0o700)
        (temporary / "README.md").write_text(BASE_README)
        self._publish_as(BASE, temporary, {"job": None, "parent": None, "figures": {}, "adapter": None})
        remove_tree(temporary)

    def _numbers(self) -> list[int]:
        return sorted(int(path.name) for path in self._versions.iterdir() if path.name.isdecimal())

    def versions(self) -> list[Version]:
        """Every version, oldest first; whole is judged by the files' sizes, without reading them."""
        with disk_faults(self._versions):
            return [self._version(number) for number in self._numbers()]

    def _version(self, number: int) -> Version:
        folder = self._versions / str(number)
        whole = folder_fault(folder, contents=False) is None
        return Version(number, self._about(number), whole, active=self._active_or_none() == number)

    def _about(self, number: int) -> dict[str, Any]:
        manifest = read_manifest(self._versions / str(number)) or {}
        return {key: value for key, value in manifest.items() if key != "files"}

    def find_by_job(self, job_id: int) -> int | None:
        """The newest whole version that this job published, if any: after a crash it need not be made again."""
        made = [v.number for v in self.versions() if v.whole and v.about.get("job") == job_id]
        return made[-1] if made else None

    def folder(self, number: int) -> Path:
        """The folder of a version, its contents unchecked. Raises NotFound."""
        folder = self._versions / str(number)
        if not folder.is_dir():
            raise NotFound(f"there is no version {number}; see nslora-agent versions")
        return folder

    def adapter(self, number: int) -> Path | None:
        """The folder of a version's adapter; None for one without: the base model, or a system prompt alone."""
        folder = self.folder(number)
        return folder if (folder / "adapter_config.json").exists() else None

    def system_prompt(self, number: int) -> str:
        """The system prompt of a version, empty if it has none."""
        path = self.folder(number) / "system_prompt.txt"
        return path.read_text() if path.exists() else ""

    def get(self, number: int) -> Version:
        """One version, every file of it checked. Raises NotFound, or StateError naming the damaged file."""
        folder = self.folder(number)
        with disk_faults(folder):
            fault = folder_fault(folder)
            if fault:
                raise StateError(f"version {number} is damaged: {fault}; promote another one or train it again")
            return self._version(number)

    def prune(self, keep: int) -> list[int]:
        """Delete all versions but the newest `keep` and those in use; returns their numbers.

        In use are the base model, the active version, its parent, and what a rollback leads to.
        """
        doomed = []
        with self._store.transaction(), disk_faults(self._versions):
            active = self._active_or_none()
            if active is None:
                return []
            stack, numbers = self._stack(), self._numbers()
            used = {BASE, active, self._about(active).get("parent"), *stack[-2:]}
            old = [number for number in numbers[: -keep or None] if number not in used]
            kept = {*numbers} - {*old}
            for number in {*stack} - kept - used:  # those of a prune that was killed before its commit included
                self._store.forget_promotions(number)
            for number in old:  # a rename each: half a version is never seen, and nobody waits for the deleting
                folder = self._versions / str(number)
                doomed.append(folder.rename(temporary_beside(folder)))
        for folder in doomed:
            remove_tree(folder)
        return old

    # ---- which one is active ----

    def active(self) -> int:
        """The active version, 0 if none was ever promoted. Raises StateError for a link that leads nowhere."""
        if not os.path.lexists(self._link):
            return BASE
        target = str(self._link.readlink()) if self._link.is_symlink() else "no link"
        match = re.fullmatch(r"versions/(\d+)", target)
        if match is None or not self._link.is_dir():
            raise StateError(f"{self._link} ({target}) leads to no version; mend it with: nslora-agent promote N")
        return int(match[1])

    def _active_or_none(self) -> int | None:
        """None for a broken link, which must not keep `versions` from listing nor `promote` from mending it."""
        try:
            return self.active()
        except StateError:
            return None

    def promote(self, number: int, job: int | None = None, token: str | None = None) -> None:
        """Make a version the active one; promoting the active one changes nothing.

        `job` is who does it, and `token` that job's running attempt; a person has neither. Raises NotFound, StateError
        for a version that is damaged, or StaleAttempt.
        """
        self.get(number)  # not in the transaction: reading all of a version may take longer than others wait for it
        with self._store.transaction() if job is None or token is None else self._store.attempt(job, token):
            self.folder(number)  # once more: it may have been pruned meanwhile
            active = self._active_or_none()
            if active is not None:
                self._align_stack(active)
            if active != number:
                self._point(number)
            if self._stack()[-1] != number:
                self._store.push_promotion(number, job)

    def rollback(self) -> int:
        """Make active what was active before, and return its number; a second rollback goes one further back.

        Raises NotFound where nothing was active before, and StateError if that version is damaged.
        """
        checked = None
        while True:
            with self._store.transaction():
                active = self.active()
                self._align_stack(active)
                stack = self._stack()
                if len(stack) == 1:
                    raise NotFound(f"nothing was active before version {active}, so there is nothing to roll back to")
                before = stack[-2]
                if before == checked:
                    self.folder(before)
                    self._point(before)
                    self._store.pop_promotion()
                    return before
            self.get(before)  # not in the transaction, so that another one may come in between: look again afterwards
            checked = before

    def reconcile(self) -> None:
        """Bring the rows into line with the link, and sweep half-written versions; for the daemon's start.

        Raises StateError for a link that leads nowhere.
        """
        with disk_faults(self._versions):
            sweep_temporaries(self._versions)
            for left in self._link.parent.glob(f"{TEMPORARY}{self._link.name}-*"):
                remove_tree(left)
        with self._store.transaction():
            self._align_stack(self.active())

    def _stack(self) -> list[int]:
        """The versions that were active, oldest first: the base model, then every promotion that stands."""
        return [BASE, *(promotion.version for promotion in self._store.promotion_stack())]

    def _align_stack(self, active: int) -> None:
        """Make `active` the top of the stack: finish the promotion or the rollback that a crash cut in two."""
        stack = self._stack()
        if stack[-1] == active:
            return
        if stack[-2:-1] == [active]:
            self._store.pop_promotion()
        else:
            self._store.push_promotion(active, self._about(active).get("job"))

    def _point(self, number: int) -> None:
        """Let the link lead to this version, in one rename that is on the disk when this returns."""
        if self._link.exists() and not self._link.is_symlink():
            raise StateError(f"{self._link} is not a link; move it away, then: nslora-agent promote {number}")
        temporary = temporary_beside(self._link)
        with disk_faults(self._link):
            remove_tree(temporary)
            temporary.symlink_to(f"versions/{number}")
            temporary.rename(self._link)
            fsync_path(self._link.parent)
