"""Fetches a job's evidence and verifies it at once."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from hansa.sdk.client import Client
from hansa.sdk.evidence import gather
from hansa.sdk.verification import Verification, Verifier, verify_evidence

# For so long after a job's end the witnesses of its log entries are waited for.
LOG_SECONDS: Final = 60.0
_PAUSE_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True)
class Proof:
    """Evidence as it came, and what it proves."""

    files: Mapping[str, bytes]
    report: Verification


async def prove(client: Client, verifier: Verifier, job_id: str, *, log_seconds: float = LOG_SECONDS) -> Proof:
    """Return the evidence of a job with its verification.

    Just after a job's end the witnesses have not seen its entries in the audit
    logs yet; where nothing else is missing, they are waited for.

    Raises:
        RemoteError: refused, or unreachable.
        HansaError: ``EVIDENCE_INVALID``; what came is no evidence.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + log_seconds
    while True:
        files = await gather(client.jobs.evidence(job_id))
        report = await asyncio.to_thread(verify_evidence, files, verifier, job_id)
        waiting = bool(report.failed) and all(step.pending for step in report.failed)
        if not waiting or loop.time() >= until:
            return Proof(files, report)
        await asyncio.sleep(_PAUSE_SECONDS)
