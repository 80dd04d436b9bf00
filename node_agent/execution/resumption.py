"""Carries what finished rules left from a lost execution into the next one of the same run.

Only where the analysis' manifest allows it. What a rule left is noted down, with
its digest, in the folder that no sandbox sees; the next execution begins with a
copy of what still has that digest. The old folder was the analysis's to write: no
link is followed, and only plain files with one name are taken.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

NOTES: Final = "finished"
_READ_BYTES: Final = 1 << 20
_MAX_OUTPUTS: Final = 1024
# Of one rule: while its files are read, the runner hears nothing else.
_MAX_BYTES: Final = 1 << 30
_NOT_CARRIED: Final = frozenset({".snakemake", ".home", "params.json"})
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Output:
    """A file that a finished rule left: its path in the scratch folder, and its digest."""

    path: str
    sha256: str


class NotCarriedError(Exception):
    """An output is no plain file of the scratch folder."""


def note_finished(control_dir: Path, work: Path, outputs: Sequence[str]) -> None:
    """Note that a rule has ended well and left ``outputs``; all of them, or it is not noted.

    Args:
        control_dir: the execution's folder that no sandbox sees.
        work: its scratch folder.
        outputs: as the sandbox names them, hence not believed.
    """
    if not 0 < len(outputs) <= _MAX_OUTPUTS:
        return
    try:
        if sum(_size(work, path) for path in outputs) > _MAX_BYTES:
            return
        found = [Output(path, _digest(work, path)) for path in outputs]
    except (NotCarriedError, OSError):
        return
    _note(control_dir, found)


def carry_over(control_dir: Path, work: Path, *, max_bytes: int, goes_on: Callable[[], bool] = lambda: True) -> int:
    """Begin ``work`` with what the execution before left; return how many files were taken.

    Both folders are ours alone still. What was taken is noted again, for the
    execution after this one.

    Args:
        control_dir: the new execution's folder that no sandbox sees.
        work: its scratch folder.
        max_bytes: how much is taken at most.
        goes_on: asked between two rules, whether to take more.
    """
    before = _execution_before(work)
    if before is None:
        return 0
    count, room = 0, max_bytes
    for outputs in _noted(before.with_name(f"{before.name}.ctl")):
        room -= _sizes(before, outputs)
        if room < 0 or not goes_on():
            break
        taken = [output for output in outputs if _take(before, work, output)]
        if len(taken) == len(outputs):
            _note(control_dir, outputs)
            count += len(taken)
        else:
            # A rule that is run again finds none of its outputs.
            for output in taken:
                (work / output.path).unlink()
    return count


def _execution_before(work: Path) -> Path | None:
    """Return the scratch folder of the run's last execution that noted anything."""
    numbers = range(int(work.name) - 1, 0, -1)
    folders = [work.with_name(str(number)) for number in numbers]
    return next((folder for folder in folders if (folder.with_name(f"{folder.name}.ctl") / NOTES).exists()), None)


def _note(control_dir: Path, outputs: Sequence[Output]) -> None:
    with (control_dir / NOTES).open("a") as notes:
        notes.write(json.dumps([asdict(output) for output in outputs]) + "\n")


def _noted(control_dir: Path) -> Iterator[Sequence[Output]]:
    for line in (control_dir / NOTES).read_text().splitlines():
        # The last line may have been cut off with its writer.
        with contextlib.suppress(ValueError, TypeError):
            yield [Output(**output) for output in json.loads(line)]


def _take(before: Path, work: Path, output: Output) -> bool:
    """Copy one file; return whether it is what was noted."""
    target = work / output.path
    try:
        with _opened(before, output.path) as source:
            for folder in reversed(target.relative_to(work).parents):
                (work / folder).mkdir(exist_ok=True)
            with target.open("xb") as copy:
                digest = hashlib.sha256()
                while part := os.read(source, _READ_BYTES):
                    digest.update(part)
                    copy.write(part)
    except (NotCarriedError, OSError):
        return False
    if digest.hexdigest() == output.sha256:
        return True
    target.unlink()
    return False


def _sizes(work: Path, outputs: Sequence[Output]) -> int:
    """Return how large the files are; what cannot be opened is not taken either."""
    total = 0
    for output in outputs:
        with contextlib.suppress(NotCarriedError, OSError):
            total += _size(work, output.path)
    return total


def _size(work: Path, path: str) -> int:
    with _opened(work, path) as file:
        return os.fstat(file).st_size


def _digest(work: Path, path: str) -> str:
    digest = hashlib.sha256()
    with _opened(work, path) as file:
        while part := os.read(file, _READ_BYTES):
            digest.update(part)
    return digest.hexdigest()


@contextlib.contextmanager
def _opened(work: Path, path: str) -> Iterator[int]:
    """Yield a descriptor of the plain file at ``path``, opened component by component."""
    parts = path.split("/")
    if parts[0] in _NOT_CARRIED or any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise NotCarriedError(path)
    with contextlib.ExitStack() as stack:
        current = os.open(work, _FOLDER)
        stack.callback(os.close, current)
        for part in parts[:-1]:
            current = os.open(part, _FOLDER, dir_fd=current)
            stack.callback(os.close, current)
        file = os.open(parts[-1], _FILE, dir_fd=current)
        stack.callback(os.close, file)
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
            raise NotCarriedError(path)
        yield file
