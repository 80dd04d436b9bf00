"""The coordinator's store, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from functools import partial

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

import coordinator.store.audit_models
import coordinator.store.job_models
import coordinator.store.people_models
import coordinator.store.trust_models  # noqa: F401 - their tables stand in Base.metadata
from coordinator.domain.membership import CredentialState, NodeEvent, NodeState
from coordinator.store.audit import AuditRepository
from coordinator.store.base import Base
from coordinator.store.catalogue import Analysis, AnalysisRepository, Dataset, DatasetRepository
from coordinator.store.credentials import Credential, CredentialRepository, InvitationRepository
from coordinator.store.database import Database
from coordinator.store.federation import create_federation, read_federation
from coordinator.store.nodes import NodeRepository
from coordinator.store.paging import Page, Slice
from coordinator.store.people_models import AuditRow, CredentialRow
from coordinator.store.persons import Person, PersonRepository
from coordinator.store.requests import Request, answer_once, forget_requests
from coordinator.store.schema import _config, is_current, migrate
from hansa.contract.directory import Role
from hansa.contract.errors import HansaError, Reason
from hansa.contract.ids import NodeId
from tests.support.stores import empty_store_url, postgres, store

__all__ = ["empty_store_url", "postgres", "store"]

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
FI = NodeId("FI")
KEY = "sha256:" + "a" * 64
OTHER_KEY = "sha256:" + "b" * 64


def invite(session: Session, secret: str = "s", node: NodeId = FI) -> None:  # noqa: S107
    if NodeRepository(session).find(node) is None:
        NodeRepository(session).add(node)
    InvitationRepository(session).replace(node, secret, expires_at=NOW + timedelta(minutes=30), inviter="olga")


def credential(serial: str, state: CredentialState = CredentialState.PENDING) -> Credential:
    return Credential(serial, FI, state, NOW + timedelta(days=7), f"sha256:{serial:0>64}", "pem")


def reason_of(database: Database, work: Callable[[Session], object]) -> Reason:
    with pytest.raises(HansaError) as caught:
        database.run_sync(work)
    return caught.value.reason


def test_the_migrations_make_exactly_the_tables_of_the_models(store: Database) -> None:
    def differences(session: Session) -> list[object]:
        options = {"compare_type": True, "compare_server_default": True}
        context = MigrationContext.configure(session.connection(), opts=options)
        return list(compare_metadata(context, Base.metadata))

    assert store.run_sync(differences) == []


def test_a_store_is_current_only_after_its_migration_and_migrating_again_changes_nothing(empty_store_url: str) -> None:
    database = Database.open(empty_store_url)
    assert not is_current(database)
    migrate(database)
    assert is_current(database)
    migrate(database)
    assert is_current(database)
    database.close()


def test_a_store_of_a_newer_release_is_refused(store: Database) -> None:
    store.run_sync(lambda session: session.execute(sa.text("UPDATE alembic_version SET version_num = '9999'")))
    assert not is_current(store)
    with pytest.raises(HansaError) as caught:
        migrate(store)
    assert caught.value.reason is Reason.CONFIG_INVALID


def test_a_database_that_cannot_be_reached_is_told_without_its_url(tmp_path: object) -> None:
    url = f"postgresql+psycopg://u:pa55word@/x?host={tmp_path}"
    database = Database.look(url)
    for reach in (lambda: is_current(database), lambda: Database.open(url)):
        with pytest.raises(HansaError) as caught:
            reach()
        assert caught.value.reason is Reason.CONFIG_INVALID
        assert "pa55word" not in str(caught.value)
    database.close()


def test_other_kinds_of_database_are_refused() -> None:
    with pytest.raises(HansaError) as caught:
        Database.open("mysql://localhost/x")
    assert caught.value.reason is Reason.CONFIG_INVALID


def test_a_transaction_that_fails_leaves_nothing(store: Database) -> None:
    def work(session: Session) -> None:
        create_federation(session, name="demo", store_uuid="u")
        raise HansaError(Reason.INTERNAL)

    assert reason_of(store, work) is Reason.INTERNAL
    assert store.run_sync(read_federation) is None


def test_times_come_back_aware_and_in_utc_whatever_zone_they_were_given_in(store: Database) -> None:
    east = NOW.astimezone(timezone(timedelta(hours=9)))
    store.run_sync(lambda session: AuditRepository(session).append(at=east, actor="a", action="b", subject="c"))
    found = store.run_sync(lambda session: AuditRepository(session).page(Page(1)).items[0].at)
    assert found == NOW
    assert found.utcoffset() == timedelta(0)


def test_a_time_without_a_zone_is_refused(store: Database) -> None:
    naive = NOW.replace(tzinfo=None)
    with pytest.raises(sa.exc.StatementError):
        store.run_sync(lambda session: AuditRepository(session).append(at=naive, actor="a", action="b", subject="c"))


async def test_many_transactions_at_once_lose_no_entry_and_leave_no_gap(store: Database) -> None:
    def append(session: Session) -> None:
        AuditRepository(session).append(at=NOW, actor="a", action="b", subject="c")

    await asyncio.gather(*(store.run(append) for _ in range(12)))
    indexes = await store.run(lambda session: list(session.scalars(sa.select(AuditRow.index))))
    assert sorted(indexes) == list(range(1, 13))


def test_of_two_keys_that_present_one_secret_the_first_alone_is_let_in(store: Database) -> None:
    store.run_sync(invite)

    def redeem(key: str, now: datetime = NOW) -> Callable[[Session], NodeId]:
        return lambda session: InvitationRepository(session).redeem("s", key_fingerprint=key, now=now)

    assert store.run_sync(redeem(KEY)) == "FI"
    assert reason_of(store, redeem(OTHER_KEY)) is Reason.ENROLMENT_REFUSED
    assert store.run_sync(redeem(KEY)) == "FI"
    assert reason_of(store, redeem(KEY, NOW + timedelta(minutes=30))) is Reason.ENROLMENT_REFUSED


async def test_of_many_keys_that_present_one_secret_at_once_exactly_one_wins(store: Database) -> None:
    await store.run(invite)

    async def attempt(number: int) -> bool:
        key = f"sha256:{number:064d}"
        try:
            await store.run(lambda s: InvitationRepository(s).redeem("s", key_fingerprint=key, now=NOW))
        except HansaError:
            return False
        return True

    outcomes = await asyncio.gather(*(attempt(number) for number in range(10)))
    assert sum(outcomes) == 1


def test_a_new_invitation_makes_the_one_before_it_worthless(store: Database) -> None:
    store.run_sync(invite)
    store.run_sync(lambda session: invite(session, "t"))
    refused = reason_of(store, lambda s: InvitationRepository(s).redeem("s", key_fingerprint=KEY, now=NOW))
    assert refused is Reason.ENROLMENT_REFUSED


def test_an_invitation_that_has_run_out_shows_in_the_nodes_state(store: Database) -> None:
    store.run_sync(invite)
    store.run_sync(lambda session: NodeRepository(session).expire_invitations(NOW + timedelta(minutes=29)))
    assert store.run_sync(lambda session: NodeRepository(session).get(FI).state) is NodeState.INVITED
    store.run_sync(lambda session: NodeRepository(session).expire_invitations(NOW + timedelta(minutes=30)))
    assert store.run_sync(lambda session: NodeRepository(session).get(FI).state) is NodeState.INVITATION_EXPIRED


def test_a_node_has_at_most_one_pending_and_one_active_certificate(store: Database) -> None:
    def states(session: Session) -> dict[str, str]:
        return {row.serial: row.state for row in session.scalars(sa.select(CredentialRow))}

    def steps(session: Session) -> dict[str, str]:
        NodeRepository(session).add(FI)
        credentials = CredentialRepository(session)
        for serial in ("1", "2"):
            credentials.add_pending(credential(serial), NOW)
            credentials.activate(credential(serial))
        credentials.add_pending(credential("3"), NOW)
        credentials.add_pending(credential("4"), NOW)
        session.expire_all()
        return states(session)

    expected = {"1": "SUPERSEDED", "2": "ACTIVE", "3": "SUPERSEDED", "4": "PENDING"}
    assert store.run_sync(steps) == expected

    def second_active(session: Session) -> None:
        session.execute(sa.update(CredentialRow).where(CredentialRow.serial == "1").values(state="ACTIVE"))

    with pytest.raises(IntegrityError):
        store.run_sync(second_active)


def test_the_inventory_of_a_node_is_replaced_whole(store: Database) -> None:
    def steps(session: Session) -> tuple[Dataset, ...]:
        nodes = NodeRepository(session)
        for node in ("FI", "ES"):
            nodes.add(NodeId(node))
        nodes.apply("FI", NodeEvent.REDEEM)
        nodes.apply("FI", NodeEvent.CONFIRM)
        datasets = DatasetRepository(session)
        datasets.replace("FI", [Dataset("a", "FI", "GRCh37", KEY), Dataset("b", "FI", "GRCh37", KEY)])
        datasets.replace("ES", [Dataset("a", "ES", "GRCh37", KEY)])
        datasets.replace("FI", [Dataset("b", "FI", "GRCh38", OTHER_KEY)])
        return datasets.page(Page(10)).items

    # ES is not active: what it offers cannot be asked.
    assert store.run_sync(steps) == (Dataset("b", "FI", "GRCh38", OTHER_KEY),)


def analyses_after(after: str, session: Session) -> Slice[Analysis]:
    return AnalysisRepository(session).page(Page(2, after))


def test_versions_are_ordered_by_their_numbers_and_pages_go_through_all_of_them(store: Database) -> None:
    versions = ["1.0", "1.2", "1.10", "2.0", "1.2.1"]

    def fill(session: Session) -> None:
        AnalysisRepository(session).list_exactly(
            Analysis("a", version, f"sha256:{number:064d}", b"{}") for number, version in enumerate(versions)
        )

    store.run_sync(fill)
    newest = store.run_sync(lambda session: AnalysisRepository(session).newest("a"))
    assert newest is not None
    assert newest.version == "2.0"
    seen: list[str] = []
    after = ""
    while True:
        page = store.run_sync(partial(analyses_after, after))
        seen += [analysis.version for analysis in page.items]
        after = page.last
        if not after:
            break
    assert seen == ["1.0", "1.2", "1.2.1", "1.10", "2.0"]


def test_an_analysis_that_is_listed_no_more_is_kept_for_the_jobs_that_name_it(store: Database) -> None:
    old, new = Analysis("a", "1.0", KEY, b"{}"), Analysis("a", "1.0", OTHER_KEY, b"[]")

    def steps(session: Session) -> tuple[Analysis | None, ...]:
        analyses = AnalysisRepository(session)
        analyses.list_exactly([old])
        analyses.list_exactly([new])
        listed = analyses.page(Page(9)).items
        analyses.list_exactly([])
        return (*listed, analyses.get("a", "1.0"), analyses.newest("a"), analyses.of_digest(KEY))

    assert store.run_sync(steps) == (new, None, None, old)


def test_people_are_replaced_whole(store: Database) -> None:
    ada = Person("ada", "uni-a", (Role.RESEARCHER, Role.AUDITOR), "k1")
    bob = Person("bob", "uni-b", (Role.REVIEWER,), "k2")

    def steps(session: Session) -> tuple[Person, ...]:
        people = PersonRepository(session)
        people.replace_all([ada, bob])
        people.replace_all([replace(ada, signing_key="k3")])
        return people.page(Page(9)).items

    assert store.run_sync(steps) == (replace(ada, signing_key="k3"),)
    assert store.run_sync(lambda session: PersonRepository(session).get("bob")) is None


def test_what_was_published_before_the_trust_repository_stays_for_running_jobs_only(empty_store_url: str) -> None:
    database = Database.open(empty_store_url)

    def old(session: Session) -> None:
        config = _config()
        config.attributes["connection"] = session.connection()
        command.upgrade(config, "0003")
        values = {"digest": KEY, "manifest": b"{}", "at": "2026-05-01 12:00:00.000000"}
        for version in ("1.0", "1.1"):
            statement = "INSERT INTO analyses VALUES ('a', :v, :v, :digest, :manifest, 'olga', :at)"
            session.execute(sa.text(statement), {**values, "v": version})

    database.run_sync(old)
    migrate(database)
    assert database.run_sync(lambda session: AnalysisRepository(session).page(Page(9)).items) == ()
    kept = database.run_sync(lambda session: AnalysisRepository(session).of_digest(KEY))
    assert kept is not None
    assert (kept.name, kept.manifest) == ("a", b"{}")
    database.close()


def test_a_repeated_request_gets_the_first_answer_and_does_nothing(store: Database) -> None:
    done: list[Request] = []

    def ask(request: Request) -> bytes:
        def act() -> bytes:
            done.append(request)
            return bytes([len(done)])

        return store.run_sync(lambda session: answer_once(session, request, NOW, act))

    first = Request("operator:olga", "r1", "Invite", b"FI")
    assert ask(first) == ask(first) == b"\1"
    assert len(done) == 1
    for other in (
        Request("operator:olga", "r1", "Invite", b"ES"),
        Request("operator:olga", "r1", "Revoke", b"FI"),
    ):
        with pytest.raises(HansaError) as caught:
            ask(other)
        assert caught.value.reason is Reason.IDEMPOTENCY_MISMATCH
    assert ask(Request("operator:oscar", "r1", "Invite", b"ES")) == b"\2"
    store.run_sync(lambda session: forget_requests(session, before=NOW + timedelta(seconds=1)))
    assert ask(first) == b"\3"


def test_a_refused_request_is_not_remembered(store: Database) -> None:
    request = Request("operator:olga", "r1", "Invite", b"FI")

    def refuse() -> bytes:
        raise HansaError(Reason.NODE_EXISTS)

    assert reason_of(store, lambda session: answer_once(session, request, NOW, refuse)) is Reason.NODE_EXISTS
    assert store.run_sync(lambda session: answer_once(session, request, NOW, lambda: b"ok")) == b"ok"
