"""What no coordinator can say, for there are no words for it (security.md T-C7): read from the descriptors.

A message or method that is added makes a test here fail. That is its purpose:
who adds one says in this file why a breached coordinator may have it.
"""

from __future__ import annotations

import re

from google.protobuf.descriptor import Descriptor

from hansa.v1 import (
    admin_service_pb2,
    catalogue_service_pb2,
    enrolment_service_pb2,
    job_service_pb2,
    node_service_pb2,
    trust_service_pb2,
)
from hansa.v1 import node_service_pb2 as wire
from tests.support.honest_frames import TO_NODES, answers_of
from tests.support.mutants import all_fields

ALL = (
    admin_service_pb2,
    catalogue_service_pb2,
    enrolment_service_pb2,
    job_service_pb2,
    node_service_pb2,
    trust_service_pb2,
)
# Settings of a node, its code, its logging, its people's decisions.
FORBIDDEN = re.compile(
    r"config|polic(y|ies)|setting|log_?level|logging|upgrade|update_url|install|script|plugin|command_line|shell"
    r"|exec$|environment|approv|decision|vote|visa|password|private"
)


def methods() -> dict[str, str]:
    return {
        method.name: service.name
        for module in ALL
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }


def sent_to_nodes() -> list[Descriptor]:
    return [*answers_of(*TO_NODES).values(), wire.CommandBody.DESCRIPTOR]


def test_a_coordinator_has_exactly_these_commands_for_a_node() -> None:
    kinds = wire.CommandBody.DESCRIPTOR.oneofs_by_name["body"].fields

    assert [field.name for field in kinds] == [
        "offer",  # judged by the node on the bytes that the researcher signed
        "cancel",  # takes work away, gives none
        "reconcile",  # asks for reports again
        "drain",  # takes work away
        "renew_now",  # the node asks for a certificate with a fresh key of its own
        "trust_update",  # the node asks for metadata, and verifies it
    ]


def test_a_command_that_is_no_offer_carries_nothing_but_the_name_of_a_run() -> None:
    kinds = wire.CommandBody.DESCRIPTOR.oneofs_by_name["body"].fields
    carried = {
        kind.name: [field.name for field in kind.message_type.fields]
        for kind in kinds
        if kind.message_type is not None and kind.name != "offer"
    }

    assert carried == {
        "cancel": ["run_id", "attempt"],
        # Ends of the node's own runs, believed by a restored store alone, and a release only with its own signature.
        "reconcile": ["runs", "more", "generation"],
        "drain": [],
        "renew_now": [],
        "trust_update": [],
    }


def test_no_method_of_any_service_changes_a_nodes_policy_logging_or_code() -> None:
    found = [name for name in methods() if FORBIDDEN.search(_snake(name))]

    assert found == []
    assert "ApplyConfig" not in methods()


def test_no_field_that_reaches_a_node_is_about_policy_logging_code_or_somebodys_decision() -> None:
    named = [name.rsplit(".", 1)[-1] for name in all_fields(*sent_to_nodes())]

    assert [name for name in sorted(named) if FORBIDDEN.search(name)] == []


def test_an_envelope_reaches_a_node_as_a_job_a_later_passport_or_its_own_statement_and_as_nothing_else() -> None:
    """So that no approval can be relayed: there is no place for one (and a wrong type is refused).

    A recorded run's envelope is the node's own release statement, verified with its own key.
    """
    holders = []
    for kind in _reachable(sent_to_nodes()):
        holders += [
            field.full_name
            for field in kind.fields
            if field.message_type is not None and field.message_type.full_name == "hansa.v1.Envelope"
        ]

    assert sorted(holders) == [
        "hansa.v1.Offer.addenda",
        "hansa.v1.Offer.job",
        "hansa.v1.RecordedRun.statement",
    ]


def test_a_node_serves_nothing_to_a_coordinator() -> None:
    """Each method of a node's services is called by the node; there is none that the coordinator calls."""
    to_nodes = {service for module in TO_NODES for service in module.DESCRIPTOR.services_by_name}

    assert to_nodes == {"NodeService", "EnrolmentService", "TrustService"}
    assert {name for name, service in methods().items() if service in to_nodes} == {
        "Connect",
        "UploadSummary",
        "RenewCertificate",
        "Enrol",
        "GetMetadata",
        "GetTarget",
    }


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def _reachable(kinds: list[Descriptor]) -> list[Descriptor]:
    found: dict[str, Descriptor] = {}
    waiting = list(kinds)
    while waiting:
        kind = waiting.pop()
        if kind.full_name not in found:
            found[kind.full_name] = kind
            waiting += [field.message_type for field in kind.fields if field.message_type is not None]
    return list(found.values())
