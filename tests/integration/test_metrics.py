"""The coordinator's figures, scraped from a real process; and what the page may not tell, or tell to others."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram

from coordinator.metrics import CoordinatorMetrics
from coordinator.store.database import Database
from deploy.local.processes import wait_until
from hansa.contract.errors import HansaError, Reason
from hansa.contract.states import JobState, RunState
from hansa.runtime.clock import utc_now
from hansa.runtime.metrics import LOOPBACK, Absences, Counted, serving_metrics
from tests.support.coordinator_process import OPERATORS, free_ports, serving_coordinator
from tests.support.hansa_command import hansa
from tests.support.scrape import ask, scrape


@pytest.mark.slow
def test_a_coordinators_figures_are_served_to_its_own_machine_alone_and_name_nobody(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    with serving_coordinator(tmp_path, f"metrics_port = {port}\n") as served:
        refused = hansa(
            "admin", "node", "confirm", "SE", "--fingerprint", "sha256:" + "0" * 64, profile=served.operators[0]
        )
        assert refused.reason == "NODE_UNKNOWN"
        for profile in served.operators:
            hansa("admin", "node", "invite", "SE", profile=profile)
        found = "hansa_coordinator_node_connected"
        assert wait_until(lambda: f'{found}{{node="SE"}}' in scrape(port).text, 60, 0.2)

        page = scrape(port)
        assert page.value("hansa_coordinator_calls_refused_total", reason="NODE_UNKNOWN") == 1
        assert page.value("hansa_coordinator_calls_refused_total", reason="PENDING_SECOND") == 1
        assert page.value(found, node="SE") == 0
        assert page.value("hansa_coordinator_disk_free_bytes") > 0
        assert page.value("hansa_coordinator_loop_lag_seconds_count") > 0
        assert page.value("hansa_coordinator_transaction_seconds_count", outcome="committed") > 0
        known = {*JobState, *RunState, *Reason, "SE", "committed", "rolled_back"}
        assert page.label_values <= known, "labels are enumerated words and nodes, nothing else"
        assert not any(person in page.text for person in OPERATORS)

        assert ask(port, host=f"evil.example:{port}")[0] == 403
        assert ask(port, method="POST")[0] == 403
        outside = socket.gethostbyname(socket.gethostname())
        if not outside.startswith("127."):
            with pytest.raises(OSError, match=r"."):
                socket.create_connection((outside, port), timeout=5).close()


def test_a_word_that_is_not_enumerated_never_becomes_a_label() -> None:
    registry = CollectorRegistry()
    counted = Counted(Counter("refused", "r", ["reason"], registry=registry), "reason", frozenset({"KNOWN"}))
    for reason in ("KNOWN", "ada@example.org", "", None):
        counted.take({"event": "call_refused", "reason": reason})
    assert registry.get_sample_value("refused_total", {"reason": "KNOWN"}) == 1
    assert registry.get_sample_value("refused_total", {"reason": "OTHER"}) == 3


def test_an_absence_lasts_from_the_first_loss_to_the_return() -> None:
    registry, now = CollectorRegistry(), [0.0]
    absences = Absences(Histogram("away", "a", registry=registry), lambda: now[0])
    absences.came("FI")
    for moment in (5.0, 6.0):
        now[0] = moment
        absences.went("FI")
    now[0] = 9.0
    absences.came("FI")
    absences.came("FI")
    assert registry.get_sample_value("away_sum") == 4.0
    assert registry.get_sample_value("away_count") == 1


def test_a_session_that_a_newer_one_has_fenced_is_no_absence(tmp_path: Path) -> None:
    database = Database.open(f"sqlite:///{tmp_path}/c.db")
    metrics = CoordinatorMetrics(database, utc_now, tmp_path)
    seen = "hansa_coordinator_reattach_seconds_count"
    rules = metrics.rules()

    def tell(event: str, epoch: int) -> None:
        for rule in rules[event]:
            rule({"event": event, "node": "FI", "epoch": epoch})

    for event, epoch in (("session_opened", 1), ("session_opened", 2), ("session_ended", 1), ("session_opened", 3)):
        tell(event, epoch)
    assert metrics.board.registry.get_sample_value(seen) == 0
    for event, epoch in (("session_ended", 3), ("session_opened", 4)):
        tell(event, epoch)
    assert metrics.board.registry.get_sample_value(seen) == 1
    database.close()


async def test_a_port_that_is_taken_is_said() -> None:
    with socket.socket() as taken:
        taken.bind((LOOPBACK, 0))
        taken.listen()
        with pytest.raises(HansaError) as caught:
            async with serving_metrics(CollectorRegistry(), taken.getsockname()[1]):
                pass
    assert (caught.value.reason, caught.value.field) == (Reason.CONFIG_INVALID, "metrics_port")
