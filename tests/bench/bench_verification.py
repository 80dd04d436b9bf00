"""Verifying the result of a job offline: everything from the pinned root to the recomputed figures.

``python -m tests.bench.bench_verification [--nodes 27] [--variants 100]``
prints JSON: the median seconds of one verification of evidence that lies in
memory, for summaries in clear and sealed. The mark (``most_seconds``) is what
is promised for 27 nodes. ``large`` is the same with ten times the variants, for
which nothing is promised: recomputing figures is then most of it. ``signatures`` is the baseline: as many
Ed25519 verifications as the evidence has signatures.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hansa.sdk.verification import verify_evidence
from tests.support.evidence_world import JOB, EvidenceWorld, build_evidence_world

MOST_SECONDS: Final = 1.0
_FIXED_SIGNATURES: Final = 5 + 1 + 3 + 3  # trust metadata, job, author and votes, the coordinator's checkpoint
_PER_NODE: Final = 3  # statement, checkpoint, cosignature


def _seconds(work: Callable[[], object], repeats: int) -> float:
    taken = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])


def _measure(world: EvidenceWorld, repeats: int) -> dict[str, Any]:
    files, verifier = world.files(), world.verifier
    report = verify_evidence(files, verifier, JOB)
    if not report.ok:
        raise SystemExit(f"the evidence does not hold: {report.failed}")
    seconds = _seconds(lambda: verify_evidence(files, verifier, JOB), repeats)
    return {
        "seconds": round(seconds, 4),
        "files": len(files),
        "bytes": sum(map(len, files.values())),
        "within_mark": seconds <= MOST_SECONDS,
    }


def _signatures(count: int, repeats: int) -> float:
    key = Ed25519PrivateKey.generate()
    signature, public = key.sign(b"x" * 1000), key.public_key()
    return _seconds(lambda: [public.verify(signature, b"x" * 1000) for _ in range(count)], repeats)


def main() -> int:
    """Measure and print; fail when the mark is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=27)
    parser.add_argument("--variants", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    names = [f"N{number:02}" for number in range(asked.nodes)]
    found = {
        kind: _measure(
            build_evidence_world(names, sealed=kind == "sealed", silent=(), variants=asked.variants), asked.repeats
        )
        for kind in ("clear", "sealed")
    }
    large = _measure(build_evidence_world(names, silent=(), variants=10 * asked.variants), asked.repeats)
    signatures = _FIXED_SIGNATURES + _PER_NODE * asked.nodes
    report = {
        "nodes": asked.nodes,
        "variants": asked.variants,
        "most_seconds": MOST_SECONDS,
        **found,
        "large": {"variants": 10 * asked.variants, "seconds": large["seconds"], "bytes": large["bytes"]},
        "signatures": {"count": signatures, "seconds": round(_signatures(signatures, asked.repeats), 4)},
    }
    sys.stdout.write(json.dumps(report) + "\n")
    return 0 if all(one["within_mark"] for one in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
