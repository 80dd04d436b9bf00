"""What it takes a node to admit a signed job.

Admission is from the envelope's bytes to the decision, with all that it
depends on read from the node's store: ledger, dataset, queue, approvals. The
job names no passport, its submitter's key is in the directory in force, and a
standing approval covers it, so that two signatures are verified.

Beside it: the rules alone, one Ed25519 verification, the whole receipt of an
offer (run, ledger, audit leaf, two events, durable commit), and a bare durable
commit of the same store.
"""

from __future__ import annotations

import asyncio
import json
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import structlog
from sqlalchemy.orm import Session

from hansa.contract.envelope import JOB_TYPE, verify
from node_agent.offers import SignedOffer
from node_agent.policy.admission import Admitted, Offered, admit, identify
from node_agent.situation import seen_before
from node_agent.store.models import StoreRow
from tests.support.admission_cases import SITE, Case
from tests.support.agent import Bench, job, make_bench, offer, person_key, signed_as

ROUNDS = 200
MARK_MS = 5.0


def timed(act: Callable[[], object]) -> float:
    """Return how long one call takes, in milliseconds."""
    began = time.perf_counter()
    act()
    return (time.perf_counter() - began) * 1000


def rules() -> list[float]:
    """Return what the pure decision takes, job by job."""
    case, view = Case(), Case().node_view()
    offers = [case.offer(case.spec()) for _ in range(ROUNDS)]
    found = []
    for offered in offers:

        def judge(offered: Offered = offered) -> None:
            spec = identify(offered, SITE)
            assert spec is not None
            assert isinstance(admit(spec, offered, view), Admitted)

        found.append(timed(judge))
    return found


def verification() -> list[float]:
    """Return what one signature takes."""
    signed, key = signed_as(job()), person_key("ada").public_key()
    return [timed(lambda: verify(signed, payload_type=JOB_TYPE, key=key)) for _ in range(ROUNDS)]


def decide(bench: Bench, signed: SignedOffer, session: Session) -> None:
    """Judge an offer as ``Offers`` does, and write nothing.

    Raises:
        RuntimeError: it was not admitted under the standing approval.
    """
    offered = signed.offered
    spec = identify(offered, bench.situation.site)
    if spec is None:
        raise RuntimeError("not a job")
    seen = seen_before(session, spec, offered.signed, run_known=False)
    outcome = admit(spec, offered, replace(bench.situation.view(session, spec, bench.now), seen=seen))
    if not isinstance(outcome, Admitted) or outcome.approval is None:
        raise RuntimeError(f"not admitted: {outcome}")


def admission(bench: Bench) -> list[float]:
    """Return what admission takes, job by job, in the store's own thread."""
    found = []

    def work(session: Session) -> None:
        for signed in [offer(job()) for _ in range(ROUNDS)]:
            found.append(timed(lambda: decide(bench, signed, session)))  # noqa: B023
            session.expunge_all()

    bench.database._transact(work)
    return found


async def stored(bench: Bench) -> tuple[list[float], list[float]]:
    """Return what the whole receipt of an offer takes, and what a bare commit takes."""
    whole, bare = [], []
    for number in range(ROUNDS):
        signed = offer(job())
        began = time.perf_counter()
        await bench.database.run(lambda session: bench.offers.receive(session, signed, bench.now))  # noqa: B023
        whole.append((time.perf_counter() - began) * 1000)

        def touch(session: Session, number: int = number) -> None:
            session.get_one(StoreRow, 1).generation = number

        began = time.perf_counter()
        await bench.database.run(touch)
        bare.append((time.perf_counter() - began) * 1000)
    return whole, bare


def main() -> int:
    """Print the report."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    with tempfile.TemporaryDirectory(prefix="hansa-bench-") as name:
        bench = make_bench(Path(name))
        try:
            admitted = admission(bench)
            whole, bare = asyncio.run(stored(bench))
        finally:
            bench.database.close()
    decided, verified = rules(), verification()
    p50 = statistics.median(admitted)
    report = {
        "jobs": ROUNDS,
        "admission_p50_ms": round(p50, 2),
        "admission_p99_ms": round(statistics.quantiles(admitted, n=100)[98], 2),
        "rules_p50_ms": round(statistics.median(decided), 3),
        "receipt_p50_ms": round(statistics.median(whole), 2),
        "bare_commit_p50_ms": round(statistics.median(bare), 2),
        "one_verification_p50_ms": round(statistics.median(verified), 3),
        "mark_ms": MARK_MS,
        "within_mark": p50 <= MARK_MS,
    }
    sys.stdout.write(json.dumps(report) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
