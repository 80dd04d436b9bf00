from __future__ import annotations

import dataclasses
import json
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from coordinator.ca.authority import create_authority
from hansa.contract.digests import canonical, digest
from hansa.contract.enrolment import encode
from hansa.contract.errors import HansaError, Reason
from hansa.contract.identity import node_of
from hansa.contract.raw_keys import key_digest
from hansa.runtime.clock import utc_now
from hansa.v1 import enrolment_service_pb2 as wire
from node_agent.config import StateFolder, create_state_folder, load_config, lock_state_folder
from node_agent.keys.credential import PENDING, is_enrolled, key_fingerprint, load_credential, load_server_ca
from node_agent.keys.enrolment import enrol
from node_agent.keys.identity import load_identity
from node_agent.policy.file import store_policy
from node_agent.policy.policy import Policy
from tests.support.enrolment_double import (
    FEDERATION,
    NODE,
    NODE_ENDPOINT,
    TRUST_ROOT,
    EnrolmentDouble,
    enrolment_listener,
)
from tests.support.node_commands import hansa_node


@pytest.fixture
def state(tmp_path: Path) -> StateFolder:
    return create_state_folder(tmp_path / "state")


def refusal(token: str, state: StateFolder) -> Reason:
    with pytest.raises(HansaError) as refused:
        enrol(token, state)
    assert not is_enrolled(state)
    assert not state.config_file.exists()
    return refused.value.reason


def test_an_invitation_becomes_a_certificate_of_a_key_that_never_left(state: StateFolder) -> None:
    double = EnrolmentDouble()
    with enrolment_listener(double) as invitation:
        outcome = enrol(invitation.token(), state)

    credential = load_credential(state)
    assert node_of(credential.certificate, FEDERATION) == NODE
    assert outcome.fingerprint == key_fingerprint(credential.key_pem)
    assert load_server_ca(state) == double.server_ca.certificate_pem
    config = load_config(state)
    assert (config.federation, config.node, config.node_endpoint) == (FEDERATION, NODE, NODE_ENDPOINT)
    assert "PRIVATE" not in double.requests[0].csr_pem


def test_the_keys_are_closed_to_others(state: StateFolder) -> None:
    with enrolment_listener(EnrolmentDouble()) as invitation:
        enrol(invitation.token(), state)
    assert stat.S_IMODE((state.keys / "credential.pem").stat().st_mode) == 0o600
    assert stat.S_IMODE(state.keys.stat().st_mode) == 0o700
    secret = {"credential.pem", "signing.key", "agreement.key"}
    assert {path.name for path in state.keys.iterdir()} == secret | {"server-ca.pem"}
    assert {stat.S_IMODE((state.keys / name).stat().st_mode) for name in secret} == {0o600}


def test_the_root_that_the_invitation_names_is_pinned_and_asked_for_by_its_digest(state: StateFolder) -> None:
    double = EnrolmentDouble()
    with enrolment_listener(double) as invitation:
        enrol(invitation.token(), state)
    assert (state.trust / "root.json").read_bytes() == TRUST_ROOT
    assert double.requests[0].trust_root_digest == invitation.trust_root_digest


@pytest.mark.parametrize("root", [b"", TRUST_ROOT + b" ", b'{"signed": "another root"}'])
def test_another_root_than_the_invitations_is_not_pinned_and_the_node_does_not_join(
    state: StateFolder, root: bytes
) -> None:
    def swap(reply: wire.EnrolResponse) -> None:
        reply.trust_root = root

    with enrolment_listener(EnrolmentDouble(change=swap)) as invitation:
        assert refusal(invitation.token(), state) is Reason.FINGERPRINT_MISMATCH
    assert not (state.trust / "root.json").exists()


def test_the_nodes_own_keys_are_there_before_the_first_request_and_outlive_a_lost_reply(state: StateFolder) -> None:
    double = EnrolmentDouble(lost_replies=1)
    with enrolment_listener(double) as invitation:
        with pytest.raises(HansaError):
            enrol(invitation.token(), state)
        before = load_identity(state).public
        enrol(invitation.token(), state)
    assert load_identity(state).public == before


def test_the_card_shows_the_public_keys_alone_under_one_fingerprint(state: StateFolder) -> None:
    with enrolment_listener(EnrolmentDouble()) as invitation:
        outcome = enrol(invitation.token(), state)
    store_policy(state.policy_file, Policy())
    done = hansa_node(state.path, "card", "--output", "json")
    assert done.code == 0, done.err
    card = json.loads(done.out)
    assert card["fingerprint"] == digest(canonical({name: card[name] for name in card if name != "fingerprint"}))
    keys = load_identity(state).public
    assert (card["signing_key"], card["agreement_key"]) == (keys.signing, keys.agreement)
    assert (card["v"], card["node"], card["tls_fingerprint"]) == (1, NODE, outcome.fingerprint)
    # People read the same digests as those who sign the directory.
    shown = hansa_node(state.path, "card").out
    assert all(key_digest(key) in shown for key in (keys.signing, keys.agreement))


def test_nothing_is_sent_to_a_server_of_another_fingerprint(state: StateFolder) -> None:
    double = EnrolmentDouble()
    with enrolment_listener(double) as invitation:
        other = dataclasses.replace(invitation, ca_fingerprint=b"\x01" * 32)
        assert refusal(other.token(), state) is Reason.FINGERPRINT_MISMATCH
    assert double.requests == []


def test_nothing_is_sent_to_a_server_that_only_shows_the_right_ca(state: StateFolder) -> None:
    double = EnrolmentDouble()
    impostor = create_authority("server CA", utc_now())
    with enrolment_listener(double, issuer=impostor, shown=double.server_ca) as invitation:
        assert refusal(invitation.token(), state) is Reason.FINGERPRINT_MISMATCH
    assert double.requests == []


def test_nothing_is_sent_to_a_server_of_the_right_ca_but_another_name(state: StateFolder) -> None:
    double = EnrolmentDouble()
    with enrolment_listener(double, name="elsewhere.example") as invitation:
        assert refusal(invitation.token(), state) is Reason.FINGERPRINT_MISMATCH
    assert double.requests == []


def test_a_node_survives_losing_the_reply_to_its_enrolment(state: StateFolder) -> None:
    double = EnrolmentDouble(lost_replies=1)
    with enrolment_listener(double) as invitation:
        assert refusal(invitation.token(), state) is Reason.COORDINATOR_UNREACHABLE
        assert stat.S_IMODE((state.keys / PENDING).stat().st_mode) == 0o600
        enrol(invitation.token(), state)
    assert is_enrolled(state)
    assert not (state.keys / PENDING).exists()


def test_a_token_used_by_another_node_first_is_refused(state: StateFolder, tmp_path: Path) -> None:
    with enrolment_listener(EnrolmentDouble()) as invitation:
        enrol(invitation.token(), create_state_folder(tmp_path / "first"))
        assert refusal(invitation.token(), state) is Reason.ENROLMENT_REFUSED


def test_an_unknown_token_is_refused(state: StateFolder) -> None:
    with enrolment_listener(EnrolmentDouble()) as invitation:
        other = dataclasses.replace(invitation, secret=encode(b"\x08" * 32))
        assert refusal(other.token(), state) is Reason.ENROLMENT_REFUSED


def test_a_folder_is_enrolled_once(state: StateFolder) -> None:
    double = EnrolmentDouble()
    with enrolment_listener(double) as invitation:
        enrol(invitation.token(), state)
        held = load_credential(state)
        with pytest.raises(HansaError) as refused:
            enrol(invitation.token(), state)
    assert refused.value.reason is Reason.NODE_STATE_CONFLICT
    assert load_credential(state) == held
    assert len(double.requests) == 1


def test_a_folder_whose_agent_runs_is_not_enrolled(state: StateFolder) -> None:
    with lock_state_folder(state), enrolment_listener(EnrolmentDouble()) as invitation:
        assert refusal(invitation.token(), state) is Reason.AGENT_RUNNING


def test_a_server_that_does_not_answer_is_unreachable(state: StateFolder) -> None:
    with enrolment_listener(EnrolmentDouble()) as invitation:
        pass
    assert refusal(invitation.token(), state) is Reason.COORDINATOR_UNREACHABLE


@pytest.mark.parametrize("cut", [0, 5, 30, 80, -1])
def test_a_truncated_token_is_refused_before_any_contact(state: StateFolder, cut: int) -> None:
    double = EnrolmentDouble()
    with enrolment_listener(double) as invitation:
        token = invitation.token()
        assert refusal(token[:cut], state) in {Reason.ENROLMENT_REFUSED, Reason.COORDINATOR_UNREACHABLE}
    assert double.requests == []


def _another_keys_certificate(reply: wire.EnrolResponse) -> None:
    reply.CopyFrom(EnrolmentDouble().answer(ec.generate_private_key(ec.SECP256R1()).public_key()))


@pytest.mark.parametrize(
    "change",
    [
        _another_keys_certificate,
        lambda reply: setattr(reply, "certificate_pem", "nonsense"),
        lambda reply: setattr(reply, "federation", "other.example"),
        lambda reply: setattr(reply, "federation", ""),
        lambda reply: setattr(reply, "node_endpoint", "no port"),
        lambda reply: setattr(reply, "server_ca_pem", ""),
        lambda reply: setattr(reply, "server_ca_pem", reply.certificate_pem),
        lambda reply: setattr(reply, "key_fingerprint", "sha256:" + "0" * 64),
    ],
)
def test_an_answer_that_is_not_to_our_request_leaves_nothing_behind(
    state: StateFolder, change: Callable[[wire.EnrolResponse], None]
) -> None:
    with enrolment_listener(EnrolmentDouble(change=change)) as invitation:
        assert refusal(invitation.token(), state) is Reason.ENROLMENT_REFUSED
    assert {path.name for path in state.keys.iterdir()} == {PENDING, "signing.key", "agreement.key"}


def test_an_answer_for_another_node_is_refused(state: StateFolder) -> None:
    def rename(reply: wire.EnrolResponse) -> None:
        reply.node = "ES"

    with enrolment_listener(EnrolmentDouble(change=rename)) as invitation:
        assert refusal(invitation.token(), state) is Reason.NODE_MISMATCH


def test_the_command_tells_what_to_do_next(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    assert hansa_node(folder, "init").code == 0
    with enrolment_listener(EnrolmentDouble()) as invitation:
        done = hansa_node(folder, "enrol", "-", stdin=invitation.token() + "\n")
    assert done.code == 0, done.err
    assert "hansa admin node confirm FI --fingerprint sha256:" in done.out
    again = hansa_node(folder, "enrol", invitation.token(), "--output", "json")
    assert again.code == 1
    assert json.loads(again.err)["error"]["reason"] == "NODE_STATE_CONFLICT"


def test_the_command_answers_programs_in_json_and_keeps_the_operators_settings(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    assert hansa_node(folder, "init", "--slots", "3").code == 0
    with enrolment_listener(EnrolmentDouble()) as invitation:
        done = hansa_node(folder, "enrol", invitation.token(), "--output", "json")
    answer = json.loads(done.out)
    assert (answer["node"], answer["federation"]) == (NODE, FEDERATION)
    assert answer["key_fingerprint"].startswith("sha256:")
    assert load_config(StateFolder(folder)).slots == 3
