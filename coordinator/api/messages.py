"""From the store's values to the wire's messages."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from coordinator.store.audit import AuditEntry, AuditLeaf
from coordinator.store.catalogue import Analysis, Dataset
from coordinator.store.nodes import Node
from coordinator.store.persons import Person
from coordinator.store.proposals import Proposal
from hansa.contract.limits import CLOCK_WORTH_A_WORD
from hansa.contract.raw_keys import key_digest
from hansa.v1 import admin_service_pb2, types_pb2

# Clocks that differ by no more are not worth a word.
_CLOCK_SECONDS: Final = int(CLOCK_WORTH_A_WORD.total_seconds())


def timestamp(moment: datetime | None) -> Timestamp | None:
    """Return an aware time as a message; None stays None."""
    if moment is None:
        return None
    message = Timestamp()
    message.FromDatetime(moment)
    return message


def node_message(node: Node, conditions: Sequence[str] = ()) -> types_pb2.Node:
    """Return a node as callers see it, with what it says of itself while it is connected."""
    return types_pb2.Node(
        node=node.node,
        state=types_pb2.Node.State.Value(node.state),
        connected=node.connected,
        since=timestamp(node.since),
        key_fingerprint=node.key_fingerprint,
        reason=node.reason,
        clock_ahead_seconds=node.clock_ahead_seconds if abs(node.clock_ahead_seconds) > _CLOCK_SECONDS else 0,
        conditions=[types_pb2.Node.Condition.Value(one) for one in conditions if node.connected],
    )


def person_message(person: Person) -> admin_service_pb2.Person:
    """Return a person as operators see them."""
    return admin_service_pb2.Person(
        name=person.name,
        organisation=person.organisation,
        roles=person.roles,
        key_fingerprint=key_digest(person.signing_key),
    )


def proposal_message(proposal: Proposal) -> admin_service_pb2.Proposal:
    """Return what waits for a second operator."""
    return admin_service_pb2.Proposal(
        proposal_id=proposal.proposal_id,
        method=proposal.method,
        subject=proposal.subject,
        proposed_by=proposal.proposed_by,
        expires_at=timestamp(proposal.expires_at),
    )


def analysis_message(analysis: Analysis) -> types_pb2.Analysis:
    """Return an analysis with its manifest."""
    return types_pb2.Analysis(
        name=analysis.name, version=analysis.version, digest=analysis.digest, manifest=analysis.manifest
    )


def dataset_message(dataset: Dataset) -> types_pb2.Dataset:
    """Return a dataset."""
    return types_pb2.Dataset(
        dataset_id=dataset.dataset_id, node=dataset.node, build=dataset.build, snapshot=dataset.snapshot
    )


def audit_message(entry: AuditEntry) -> admin_service_pb2.AuditEntry:
    """Return an entry of the audit list."""
    return admin_service_pb2.AuditEntry(
        index=entry.index, at=timestamp(entry.at), actor=entry.actor, action=entry.action, subject=entry.subject
    )


def audit_leaf_message(leaf: AuditLeaf) -> admin_service_pb2.AuditLeaf:
    """Return a leaf with its act; ``salt`` is empty once the act was erased."""
    return admin_service_pb2.AuditLeaf(
        index=leaf.index, body=leaf.body, entry=audit_message(leaf.entry), salt=leaf.salt or b""
    )
