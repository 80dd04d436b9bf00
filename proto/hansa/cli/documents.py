"""The JSON form of what the coordinator answers (docs/reference/cli.md)."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from hansa.contract.errors import HansaError
from hansa.contract.manifest import Manifest, parse_manifest
from hansa.sdk.jobs import enum_name, job_state_name, run_state_name
from hansa.v1 import admin_service_pb2, types_pb2

Document = dict[str, Any]


def moment(timestamp: Timestamp) -> datetime | None:
    """Return ``timestamp`` as aware UTC time; None where none was set."""
    if not timestamp.seconds and not timestamp.nanos:
        return None
    return timestamp.ToDatetime(UTC)


def rfc3339(timestamp: Timestamp) -> str | None:
    """Return ``timestamp`` as text, in UTC with milliseconds."""
    found = moment(timestamp)
    return found.isoformat(timespec="milliseconds").replace("+00:00", "Z") if found else None


def shown_time(timestamp: Timestamp) -> str:
    """Return ``timestamp`` for people: UTC, whole seconds; empty where none was set."""
    found = moment(timestamp)
    return f"{found:%Y-%m-%d %H:%M:%S}Z" if found else ""


def job(message: types_pb2.Job) -> Document:
    """Return a job."""
    return {
        "job_id": message.job_id,
        "state": job_state_name(message),
        "analysis": message.analysis,
        "submitter": message.submitter,
        "quorum": message.quorum,
        "submitted_at": rfc3339(message.submitted_at),
        "deadline": rfc3339(message.deadline),
        "waits_for": message.waits_for,
        "answers": {"here": message.answers, "needed": message.quorum, "in_reach": message.answers_in_reach},
        "nodes": [run(one) for one in message.runs],
    }


def run(message: types_pb2.Run) -> Document:
    """Return a run as one entry of its job's ``nodes``."""
    return {
        "node": message.node,
        "state": run_state_name(message),
        "reason": message.reason,
        "incident": message.incident,
        "dataset": message.dataset,
        "run_id": message.run_id,
        "attempt": message.attempt,
        "execution": message.execution,
        "updated_at": rfc3339(message.updated_at),
        "unreachable_since": rfc3339(message.unreachable_since),
        "waits_for": message.waits_for,
    }


def dataset(message: types_pb2.Dataset) -> Document:
    """Return a dataset."""
    return {
        "dataset": message.dataset_id,
        "node": message.node,
        "build": message.build,
        "snapshot": message.snapshot,
    }


def node_state(message: types_pb2.Node) -> str:
    """Return the name of a node's state."""
    return enum_name(types_pb2.Node.State.keys(), types_pb2.Node.State.values(), message.state)


def conditions(message: types_pb2.Node) -> list[str]:
    """Return the names of what a connected node says of itself."""
    kinds = types_pb2.Node.Condition
    return [enum_name(kinds.keys(), kinds.values(), one) for one in message.conditions]


def connection(message: types_pb2.Node) -> str:
    """Return whether a node is ``connected``, ``unreachable``, or was ``never seen``."""
    if message.connected:
        return "connected"
    return "unreachable" if moment(message.since) else "never seen"


def node(message: types_pb2.Node) -> Document:
    """Return a node."""
    return {
        "node": message.node,
        "state": node_state(message),
        "connected": message.connected,
        "since": rfc3339(message.since),
        "connection": connection(message),
        "conditions": conditions(message),
        "clock_ahead_seconds": message.clock_ahead_seconds,
        "reason": message.reason,
        "key_fingerprint": message.key_fingerprint,
    }


def manifest(message: types_pb2.Analysis) -> Manifest | None:
    """Return an analysis' manifest; None where this release cannot read it."""
    try:
        return parse_manifest(message.manifest)
    except HansaError:
        return None


def analysis(message: types_pb2.Analysis) -> Document:
    """Return an analysis with its whole manifest."""
    try:
        content = json.loads(message.manifest)
    except ValueError:
        content = None
    return {"name": message.name, "version": message.version, "digest": message.digest, "manifest": content}


def person(message: admin_service_pb2.Person) -> Document:
    """Return a person."""
    return {
        "name": message.name,
        "organisation": message.organisation,
        "roles": list(message.roles),
        "key_fingerprint": message.key_fingerprint,
    }


def proposal(message: admin_service_pb2.Proposal) -> Document:
    """Return what waits for a second operator."""
    return {
        "proposal": message.proposal_id,
        "method": message.method,
        "subject": message.subject,
        "proposed_by": message.proposed_by,
        "expires_at": rfc3339(message.expires_at),
    }


def audit_entry(message: admin_service_pb2.AuditEntry) -> Document:
    """Return an entry of the audit list."""
    return {
        "index": message.index,
        "at": rfc3339(message.at),
        "actor": message.actor,
        "action": message.action,
        "subject": message.subject,
    }
