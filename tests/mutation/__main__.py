"""Removes one defence at a time and demands that its test fails: ``python -m tests.mutation [id…]``.

Each worker has a copy of the tree in a folder of its own. First every named
test has to pass as the code stands; then, for each defence, the code is taken
out, the test has to fail, and the file is put back.
"""

from __future__ import annotations

import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.mutation.defences import ROOT, Defence, read_defences

WORKERS = 2
SECONDS = 240
# A defence against waiting for ever is missed by a test that waits.
TEST_SECONDS = 60
_TREE = ("coordinator", "node_agent", "proto", "tests", "deploy", "pyproject.toml")
_SPARE = shutil.ignore_patterns("__pycache__", ".hypothesis", "*.pyc", ".pytest_cache")
_PASSED, _FAILED = 0, 1


@dataclass(frozen=True)
class Verdict:
    """What came of one defence; ``fault`` is empty where its test noticed."""

    defence: Defence
    fault: str
    seconds: float


class Tree:
    """A copy of the sources that may be damaged."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in _TREE:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, folder / name, ignore=_SPARE)
            else:
                shutil.copy(source, folder / name)

    def run(self, tests: Iterable[str]) -> tuple[int, str]:
        """Run ``tests`` with the copy's own code; return pytest's exit code and last words."""
        paths = os.pathsep.join(str(self.folder / place) for place in ("", "proto", "node_agent/plugins"))
        environment = {**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--no-header"]
        command += [f"--timeout={TEST_SECONDS}", *tests]
        try:
            done = subprocess.run(
                command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            return -1, f"no end after {SECONDS} s"
        return done.returncode, (done.stdout + done.stderr)[-2000:]

    def judge(self, defence: Defence) -> Verdict:
        """Take the defence out, run its test, put the defence back."""
        path, began = self.folder / defence.file, time.monotonic()
        whole = path.read_text(encoding="utf-8")
        path.write_text(defence.removed_from(whole), encoding="utf-8")
        try:
            code, words = self.run([defence.test])
        finally:
            path.write_text(whole, encoding="utf-8")
        fault = {_FAILED: "", _PASSED: "SURVIVED"}.get(code, f"no verdict: {words}")
        return Verdict(defence, fault, time.monotonic() - began)


def judge_all(defences: Sequence[Defence], folder: Path) -> list[Verdict]:
    """Judge all defences, ``WORKERS`` at a time."""
    waiting: queue.SimpleQueue[Defence] = queue.SimpleQueue()
    for defence in defences:
        waiting.put(defence)
    verdicts: list[Verdict] = []

    def work(tree: Tree) -> None:
        while True:
            try:
                verdict = tree.judge(waiting.get_nowait())
            except queue.Empty:
                return
            verdicts.append(verdict)
            word = "ok" if not verdict.fault else verdict.fault
            sys.stdout.write(f"{verdict.defence.id:<34} {verdict.seconds:6.1f} s  {word}\n")
            sys.stdout.flush()

    threads = [
        threading.Thread(target=work, args=(Tree(folder / str(number)),))
        for number in range(min(WORKERS, len(defences)))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return verdicts


def main(wanted: Sequence[str]) -> int:
    """Judge the defences ``wanted``, or all; return 1 if any was not missed."""
    defences = [defence for defence in read_defences() if not wanted or defence.id in wanted]
    with tempfile.TemporaryDirectory(prefix="hansa-mutation-") as name:
        folder = Path(name)
        # Functions, not single parameters: fewer than a command line holds.
        code, words = Tree(folder / "whole").run(sorted({defence.test for defence in defences}))
        if code != _PASSED:
            sys.stdout.write(f"The tests do not pass as the code stands:\n{words}\n")
            return 1
        verdicts = judge_all(defences, folder)
    survived = [verdict.defence.id for verdict in verdicts if verdict.fault]
    missing = len(defences) - len(verdicts)
    sys.stdout.write(f"\n{len(verdicts) - len(survived)} of {len(defences)} defences are missed when they are gone.\n")
    if survived or missing:
        sys.stdout.write(f"Not missed: {', '.join(survived)}; not judged: {missing}\n")
    return 1 if survived or missing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
