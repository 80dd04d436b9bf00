"""``hansa job verify``: what a job's result rests on, checked without trusting the coordinator."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hansa.cli import failures
from hansa.cli.invocation import Invocation, remote
from hansa.cli.output import cell, print_json
from hansa.cli.session import run
from hansa.contract.errors import HansaError, Reason
from hansa.contract.ids import job_id as checked_id
from hansa.sdk.profile import find_profile, load_profile

if TYPE_CHECKING:
    from hansa.sdk.proving import Proof
    from hansa.sdk.verification import Verification, Verifier

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("job_id")
@click.option("--evidence", type=_PATH, metavar="FOLDER", help="Verify the files in FOLDER, without any contact.")
@click.option("--save", type=_PATH, metavar="FOLDER", help="Keep the fetched files in FOLDER, which is new or empty.")
@click.option("--trust-root", type=_PATH, metavar="FILE", help="The pinned root; else the profile's trust_root.")
@click.option("--recipient-key", type=_PATH, metavar="FILE", help="Your private key, for a sealed job.")
@click.option("--without-summaries", is_flag=True, help="For auditors, whose evidence has no summaries.")
@remote
@click.pass_obj
def verify(
    invocation: Invocation,
    *,
    job_id: str,
    evidence: Path | None,
    save: Path | None,
    trust_root: Path | None,
    recipient_key: Path | None,
    without_summaries: bool,
    output: str,
) -> int:
    """Verify what the result of job JOB_ID rests on, step by step.

    Exit codes: 0 everything holds; 5 something does not.
    """
    if evidence is not None and save is not None:
        raise click.UsageError("--save is for what is fetched; --evidence fetches nothing.")
    checked_id(job_id)
    verifier = make_verifier(
        invocation, trust_root=trust_root, recipient_key=recipient_key, with_summaries=not without_summaries
    )
    if evidence is not None:
        from hansa.sdk.evidence import read_evidence
        from hansa.sdk.verification import verify_evidence

        report = verify_evidence(read_evidence(evidence), verifier, job_id)
    else:
        report = fetch_proof(invocation, verifier, job_id, save=save).report
    _show(job_id, report, output)
    return failures.DONE if report.ok else failures.NOT_PROVEN


def make_verifier(
    invocation: Invocation, *, trust_root: Path | None, recipient_key: Path | None, with_summaries: bool = True
) -> Verifier:
    """Return what the caller verifies with: their pinned root, and their key.

    Raises:
        HansaError: ``CONFIG_INVALID``, ``KEY_INVALID``.
    """
    from hansa.sdk.keys import load_recipient_key
    from hansa.sdk.trust import read_trust_root
    from hansa.sdk.verification import Verifier

    path = trust_root or load_profile(find_profile(invocation.profile, os.environ)).trust_root
    key = None if recipient_key is None else load_recipient_key(recipient_key)
    return Verifier(root=read_trust_root(path), recipient_key=key, with_summaries=with_summaries)


def fetch_proof(invocation: Invocation, verifier: Verifier, job_id: str, *, save: Path | None = None) -> Proof:
    """Fetch the evidence, verify it, and keep it in ``save``.

    Raises:
        HansaError: refused, unreachable, or ``FILE_INVALID``.
    """
    from hansa.sdk.evidence import write_evidence
    from hansa.sdk.proving import prove

    proof = run(invocation, lambda client: prove(client, verifier, job_id))
    if save is not None:
        write_evidence(proof.files, save)
    return proof


def proven_result(proof: Proof) -> bytes:
    """Return the result as recomputed from evidence that holds.

    What the audit logs do not show yet is no obstacle: `hansa job verify` says it.

    Raises:
        HansaError: ``EVIDENCE_INVALID``; a step failed, or the summaries could
            not be opened.
    """
    failed = [step for step in proof.report.failed if not step.pending]
    if failed:
        raise HansaError(Reason.EVIDENCE_INVALID, failed[0].words, field=failed[0].where)
    if proof.report.result is None:
        raise HansaError(Reason.EVIDENCE_INVALID, "The result cannot be recomputed.", field="result")
    return proof.report.result


def _show(job_id: str, report: Verification, output: str) -> None:
    if output == "json":
        print_json(
            {
                "job_id": job_id,
                "ok": report.ok,
                "steps": [
                    {"step": step.name, "ok": step.ok, "where": step.where, "words": step.words}
                    for step in report.steps
                ],
                "answered": list(report.answered),
                "silent": dict(report.silent),
            }
        )
        return
    for step in report.steps:
        mark = "ok    " if step.ok else "FAILED"
        click.echo(f"{mark}  {cell(step.name).plain}: {cell(step.words).plain}")
    for node, state in report.silent.items():
        click.echo(f"        {cell(node).plain} gave nothing; the coordinator reports {cell(state).plain}")
    click.echo("Everything holds." if report.ok else "This evidence does not hold.")
