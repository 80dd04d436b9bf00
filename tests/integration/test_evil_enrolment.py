"""What a coordinator that is evil from the first day can answer to a node that joins: each field changed once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from coordinator.ca.authority import create_authority
from hansa.contract.errors import HansaError
from hansa.runtime.clock import utc_now
from hansa.v1 import enrolment_service_pb2 as wire
from node_agent.config import PINNED_ROOT, StateFolder, create_state_folder, load_config
from node_agent.keys.credential import is_enrolled, load_server_ca
from node_agent.keys.enrolment import enrol
from tests.support.enrolment_double import FEDERATION, NODE, TRUST_ROOT, EnrolmentDouble, enrolment_listener
from tests.support.mutants import Guide, SameError, message_mutants
from tests.support.tally import report

Change = Callable[[wire.EnrolResponse], None]


def answered(folder: Path, change: Change) -> str:
    """Return the reason for which a node refuses the changed answer, or "joined" if it pins all that is honest."""
    state = create_state_folder(folder)
    double = EnrolmentDouble(change=change)
    with enrolment_listener(double) as invitation:
        try:
            enrol(invitation.token(), state)
        except HansaError as error:
            assert not is_enrolled(state)
            assert not state.config_file.exists()
            return error.reason.value
    assert_nothing_foreign(state, double)
    return "joined"


def assert_nothing_foreign(state: StateFolder, double: EnrolmentDouble) -> None:
    config = load_config(state)
    assert (config.federation, config.node) == (FEDERATION, NODE)
    assert load_server_ca(state) == double.server_ca.certificate_pem
    assert (state.trust / PINNED_ROOT).read_bytes() == TRUST_ROOT


def test_evil_every_field_of_an_answer_to_enrolment_changed_once(tmp_path: Path) -> None:
    """The address of the coordinator may change: who answers there is still verified. All else is pinned or refused."""
    example = wire.EnrolResponse(
        federation=FEDERATION,
        node=NODE,
        certificate_pem="-----BEGIN",
        server_ca_pem="-----BEGIN",
        node_endpoint="127.0.0.1:7002",
        key_fingerprint="sha256:" + "0" * 64,
        trust_root=TRUST_ROOT,
    )
    guide = Guide(others={"hansa.v1.EnrolResponse.node": "ES", "hansa.v1.EnrolResponse.federation": "other.example"})
    outcomes: Counter[str] = Counter()
    for number, mutant in enumerate(message_mutants(example, guide)):

        def change(reply: wire.EnrolResponse, mutant: object = mutant) -> None:
            try:
                changed = mutant.of(reply)  # type: ignore[attr-defined]
            except SameError:
                return
            reply.CopyFrom(changed)

        found = answered(tmp_path / str(number), change)
        outcomes[found] += 1
        if found == "joined":
            # Only where to connect, what nobody reads, and what stands after a certificate's end.
            harmless = ("node_endpoint:nudged", "unknown-field", "certificate_pem:", "server_ca_pem:")
            assert any(part in mutant.id for part in harmless), mutant.id

    report("an answer to enrolment, each field changed once", outcomes)
    assert sum(outcomes.values()) >= 20


def test_evil_a_second_certificate_authority_is_not_slipped_in(tmp_path: Path) -> None:
    """It would be trusted for as long as the node lives, also after the coordinator was recovered."""
    own = create_authority("evil CA", utc_now()).certificate_pem.decode()

    def after(reply: wire.EnrolResponse) -> None:
        reply.server_ca_pem += own

    def before(reply: wire.EnrolResponse) -> None:
        reply.server_ca_pem = own + reply.server_ca_pem

    assert answered(tmp_path / "after", after) == "ENROLMENT_REFUSED"
    assert answered(tmp_path / "before", before) == "ENROLMENT_REFUSED"


def test_evil_another_root_of_trust_than_the_invitations_is_not_pinned(tmp_path: Path) -> None:
    def change(reply: wire.EnrolResponse) -> None:
        reply.trust_root = reply.trust_root.replace(b'"root"', b'"toor"') + b" "

    assert answered(tmp_path / "root", change) == "FINGERPRINT_MISMATCH"
