"""``hansa job``: submit, watch, cancel, and read the result."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

import click

from hansa.cli import documents, failures
from hansa.cli.arguments import Duration, parse_pairs
from hansa.cli.invocation import Invocation, remote
from hansa.cli.output import cell, print_fields, print_json, print_table
from hansa.cli.plot import check_plot_path, draw_result
from hansa.cli.result_view import print_result
from hansa.cli.session import run
from hansa.cli.verify import fetch_proof, make_verifier, proven_result, verify
from hansa.cli.waiting import wait_for_end
from hansa.contract.errors import Reason
from hansa.contract.release import ReleaseClass
from hansa.contract.strict import strict_json
from hansa.sdk.client import Client
from hansa.sdk.errors import RemoteError
from hansa.sdk.jobs import job_state_name
from hansa.sdk.request import JobRequest, check_request
from hansa.sdk.result import Result, parse_result
from hansa.v1 import job_service_pb2, types_pb2


@click.group()
def job() -> None:
    """Submit jobs, watch them, read their results."""


job.add_command(verify)


@job.command()
@click.argument("analysis")
@click.option("--dataset", "datasets", multiple=True, required=True, metavar="ID", help="Once per node to ask.")
@click.option("--project", default="", help="Whose permission the job uses; needed where you are in several projects.")
@click.option("--purpose", default="", help="For the people who approve it.")
@click.option("--param", "pairs", multiple=True, metavar="NAME=VALUE", help="See `hansa analyses show ANALYSIS`.")
@click.option("--quorum", type=int, help="How many nodes must release; all of them unless given.")
@click.option(
    "--deadline",
    type=Duration(Reason.DEADLINE_INVALID, "deadline"),
    default="24h",
    show_default=True,
    help="How long the nodes have, such as 30m or 2d.",
)
@click.option(
    "--release-class",
    type=click.Choice([one.value for one in ReleaseClass]),
    default=ReleaseClass.AUTO.value,
    show_default=True,
    help="How many people look at each summary: none, one, or two. A node may ask for more.",
)
@click.option("--seal", is_flag=True, help="The summaries are for you alone; the coordinator combines nothing.")
@click.option("--wait", is_flag=True, help="Show the progress, then the result.")
@remote
@click.pass_obj
def submit(
    invocation: Invocation,
    *,
    analysis: str,
    datasets: tuple[str, ...],
    project: str,
    purpose: str,
    pairs: tuple[str, ...],
    quorum: int | None,
    deadline: timedelta,
    release_class: str,
    seal: bool,
    wait: bool,
    output: str,
) -> int:
    """Ask ANALYSIS (NAME or NAME@VERSION) of the datasets; print the job's id, or with --wait the result."""
    name, _, version = analysis.partition("@")
    request = JobRequest(
        analysis=name,
        version=version,
        project=project,
        purpose=purpose,
        release_class=ReleaseClass(release_class),
        seal=seal,
        datasets=datasets,
        parameters=parse_pairs(pairs),
        quorum=quorum,
        lifetime=deadline,
    )
    check_request(request)
    submitted: list[types_pb2.Job] = []

    async def work(client: Client) -> job_service_pb2.GetResultResponse | None:
        submitted.append(await _submit(client, request))
        return await _result_at_end(client, submitted[0].job_id) if wait else None

    try:
        answer = run(invocation, work)
    except KeyboardInterrupt:
        return _left_running(submitted[0].job_id) if submitted else failures.INTERRUPTED
    if answer is None:
        return _show_submitted(submitted[0], output)
    return _show_result(answer, output, job_id=submitted[0].job_id)


async def _submit(client: Client, request: JobRequest) -> types_pb2.Job:
    view, datasets = await asyncio.gather(client.trust.view(), client.catalogue.datasets())
    return await client.jobs.submit(client.jobs.build(request, view, datasets))


async def _result_at_end(client: Client, job_id: str) -> job_service_pb2.GetResultResponse:
    await wait_for_end(client, job_id)
    return await client.jobs.result(job_id)


def _show_submitted(submitted: types_pb2.Job, output: str) -> int:
    if output == "json":
        print_json(documents.job(submitted))
    else:
        click.echo(cell(submitted.job_id).plain)
    return failures.DONE


def _show_result(
    answer: job_service_pb2.GetResultResponse, output: str, *, job_id: str, is_proven: bool = False
) -> int:
    result = parse_result(answer.result)
    if result.job_id != job_id:
        raise RemoteError(Reason.MALFORMED, "The coordinator's result is of another job.", field="job_id")
    if output == "json":
        print_json(strict_json(answer.result))
    else:
        print_result(result, waits_for=answer.job.waits_for)
        if result.variants and not is_proven:
            click.echo(
                f"These are the coordinator's figures; what proves them: hansa job verify {cell(job_id).plain}",
                err=True,
            )
    return failures.of_job(result.state)


def _left_running(job_id: str) -> int:
    known = cell(job_id).plain
    click.echo(f"Job {known} goes on. Look again: hansa job watch {known}   End it: hansa job cancel {known}", err=True)
    return failures.INTERRUPTED


@job.command("list")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="How many at most.")
@remote
@click.pass_obj
def list_jobs(invocation: Invocation, limit: int, output: str) -> None:
    """List your jobs, the newest first; an operator sees everybody's."""
    jobs = run(invocation, lambda client: client.jobs.list(limit=limit))
    if output == "json":
        print_json({"jobs": [documents.job(one) for one in jobs]})
        return
    rows = [
        (one.job_id, cell(job_state_name(one)), one.analysis, one.submitter, documents.shown_time(one.submitted_at))
        for one in jobs
    ]
    print_table(("JOB", "STATE", "ANALYSIS", "SUBMITTER", "SUBMITTED"), rows, nothing="There is no job.")


@job.command()
@click.argument("job_id")
@remote
@click.pass_obj
def show(invocation: Invocation, job_id: str, output: str) -> None:
    """Show where job JOB_ID stands at each node."""
    _show_job(run(invocation, lambda client: client.jobs.get(job_id)), output)


def _show_job(found: types_pb2.Job, output: str) -> None:
    if output == "json":
        print_json(documents.job(found))
        return
    print_fields(
        {
            "job": found.job_id,
            "state": cell(job_state_name(found)),
            "analysis": found.analysis,
            "submitter": found.submitter,
            "quorum": f"{found.quorum} of {len(found.runs)}",
            "answers": f"{found.answers} here, {found.answers_in_reach} in reach",
            "submitted": documents.shown_time(found.submitted_at),
            "deadline": documents.shown_time(found.deadline),
            "now": found.waits_for,
        }
    )
    rows = [
        (
            one["node"],
            one["dataset"],
            one["state"],
            documents.shown_time(ran.updated_at),
            one["waits_for"],
            one["reason"],
            one["incident"],
            f"{one['attempt']}.{one['execution']}",
        )
        for ran, one in ((ran, documents.run(ran)) for ran in found.runs)
    ]
    columns = ("NODE", "DATASET", "STATE", "SINCE", "WAITS FOR", "REASON", "INCIDENT", "TRY")
    print_table(columns, rows, nothing="It has no runs.")


@job.command()
@click.argument("job_id")
@remote
@click.pass_obj
def watch(invocation: Invocation, job_id: str, output: str) -> int:
    """Show the progress of job JOB_ID until it has ended. Ctrl-C leaves it running."""
    try:
        ended = run(invocation, lambda client: wait_for_end(client, job_id))
    except KeyboardInterrupt:
        return _left_running(job_id)
    _show_job(ended, output)
    return failures.of_job(job_state_name(ended))


@job.command()
@click.argument("job_id")
@remote
@click.pass_obj
def cancel(invocation: Invocation, job_id: str, output: str) -> None:
    """Ask for the end of job JOB_ID; each node confirms it."""
    _show_job(run(invocation, lambda client: client.jobs.cancel(job_id)), output)


@job.command()
@click.argument("job_id")
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE", help="Draw it: .png, .svg or .pdf.")
@click.option(
    "--recipient-key", type=click.Path(path_type=Path), metavar="FILE", help="Your private key: opens a sealed job."
)
@remote
@click.pass_obj
def result(invocation: Invocation, *, job_id: str, plot: Path | None, recipient_key: Path | None, output: str) -> int:
    """Print the result of job JOB_ID, which has ended.

    With --recipient-key, the job's evidence is fetched and verified, and the
    sealed summaries are opened and combined here.
    """
    if plot is not None:
        check_plot_path(plot)
    verifier = None
    if recipient_key is not None:
        verifier = make_verifier(invocation, trust_root=None, recipient_key=recipient_key)
    answer = run(invocation, lambda client: client.jobs.result(job_id))
    if verifier is not None:
        answer.result = proven_result(fetch_proof(invocation, verifier, job_id))
    code = _show_result(answer, output, job_id=job_id, is_proven=verifier is not None)
    if plot is not None:
        _plot(parse_result(answer.result), plot)
    return code


def _plot(result: Result, path: Path) -> None:
    if result.variants:
        draw_result(result, path)
        click.echo(f"Plot: {cell(path).plain}", err=True)
    else:
        click.echo("No plot: the result has no variant.", err=True)
