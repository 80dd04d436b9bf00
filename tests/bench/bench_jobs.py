"""A trivial job over three nodes, submit to result, against one cold `snakemake`.

The federation is the one of `make up`: mutual TLS, sandbox, disclosure check
and release on. The baseline is one cold run of the same workflow by the
`snakemake` command, without sandbox, network or federation.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from deploy.local.cast import RESEARCHER
from deploy.local.ceremony import PROJECT
from deploy.local.commands import environment
from deploy.local.federation import Wish, down, up
from deploy.local.layout import REPOSITORY, Layout
from hansa.sdk.client import Client, connect
from hansa.sdk.jobs import has_ended, job_state_name
from hansa.sdk.profile import load_profile
from hansa.sdk.request import JobRequest

NODES = ("GB", "FI", "ES")
VARIANT = "rs12913832"
SINGLE_JOBS = 9
BURST = 20
COLD_RUNS = 5
# NVIDIA FLARE 2.9.0 and Flower 1.41.0 on a machine of this kind, jobs a minute
# (docs/performance.md says how they were measured).
PEERS_PER_MINUTE = {"NVFlare": 16.6, "Flower": 11.2}


@contextmanager
def federation() -> Iterator[Layout]:
    """A running federation in a scratch folder; gone afterwards."""
    root = Path(tempfile.mkdtemp(prefix="hansa-bench-"))
    layout = Layout(root)
    try:
        up(layout, Wish(",".join(NODES)), lambda text: None)
        yield layout
    finally:
        down(layout)
        shutil.rmtree(root, ignore_errors=True)


async def one_job(client: Client) -> float:
    """Return the seconds from submit to result."""
    request = JobRequest(
        analysis="allele-frequency",
        project=PROJECT,
        datasets=[f"{node}-aisnp" for node in NODES],
        parameters={"variants": VARIANT},
        lifetime=timedelta(minutes=10),
    )
    began = time.perf_counter()
    view, datasets = await client.trust.view(), await client.catalogue.datasets()
    job = await client.jobs.submit(client.jobs.build(request, view, datasets))
    async for state in client.jobs.watch(job.job_id):
        if has_ended(state) and job_state_name(state) != "COMPLETED":
            raise RuntimeError(f"the job ended {job_state_name(state)}")
    await client.jobs.result(job.job_id)
    return time.perf_counter() - began


async def measure_jobs(layout: Layout) -> dict[str, Any]:
    """Return seconds of single jobs, and of a burst."""
    async with connect(load_profile(layout.profile(RESEARCHER))) as client:
        first = await one_job(client)
        single = [await one_job(client) for _ in range(SINGLE_JOBS)]
        began = time.perf_counter()
        await asyncio.gather(*(one_job(client) for _ in range(BURST)))
        return {"first": first, "single": single, "burst": time.perf_counter() - began}


def cold_snakemake(layout: Layout) -> list[float]:
    """Return the seconds of cold CLI runs of the same workflow on one node's snapshot."""
    snapshot = next(layout.node(NODES[0]).state.glob("datasets/*/*/genotypes.pgen")).parent
    bundle = REPOSITORY / "node_agent/analyses/allele_frequency"
    seconds = []
    for _ in range(COLD_RUNS):
        work = Path(tempfile.mkdtemp(prefix="hansa-cold-"))
        (work / "params.json").write_text(json.dumps({"variants": VARIANT}))
        config = work / "config.json"
        config.write_text(json.dumps({"bundle": str(bundle), "data": str(snapshot), "work": str(work)}))
        command = [
            *(str(Path(sys.executable).with_name("snakemake")), "--cores", "1", "--quiet", "all"),
            *("--snakefile", str(bundle / "Snakefile"), "--configfile", str(config), "--directory", str(work)),
        ]
        began = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True, env=environment())
        seconds.append(time.perf_counter() - began)
        if not (work / "summary.json").is_file():
            raise RuntimeError("the baseline wrote no summary")
        shutil.rmtree(work)
    return seconds


def main() -> int:
    """Print the report."""
    with federation() as layout:
        jobs = asyncio.run(measure_jobs(layout))
        cold = statistics.median(cold_snakemake(layout))
    single = statistics.median(jobs["single"])
    per_minute = BURST * 60 / jobs["burst"]
    report = {
        "nodes": len(NODES),
        "job_seconds_median": round(single, 3),
        "job_seconds_all": [round(value, 3) for value in jobs["single"]],
        "first_job_seconds": round(jobs["first"], 3),
        "cold_snakemake_seconds_median": round(cold, 3),
        "job_over_cold_snakemake": round(single / cold, 3),
        "jobs_per_minute_burst_of_20": round(per_minute, 1),
        "jobs_per_minute_over_peers": {n: round(per_minute / value, 1) for n, value in PEERS_PER_MINUTE.items()},
    }
    sys.stdout.write(json.dumps(report) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
