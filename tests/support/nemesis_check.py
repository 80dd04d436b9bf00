"""The promises, each held against what both sides have stored and what was seen meanwhile.

Every check is a function of evidence that returns what it found wrong, in
words; nothing found is the only good verdict. ``tests/fault/test_nemesis_itself.py``
plants violations and sees that each is found.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from hansa.contract.digests import CHAIN_START
from hansa.contract.errors import RunReason
from hansa.contract.outbox import Head
from hansa.contract.states import JOB_TERMINAL, RUN_TERMINAL, RUN_TRANSITIONS, RunState
from hansa.v1 import node_service_pb2, types_pb2


@dataclass(frozen=True, slots=True)
class Stored:
    """An entry of an outbox, as one side has it."""

    seq: int
    hash: bytes
    body: bytes


@dataclass(slots=True)
class NodeRun:
    """A run in a node's store."""

    job_id: str
    execution: int
    state: str
    reason: str = ""


@dataclass(slots=True)
class NodeSummary:
    """A summary in a node's store."""

    execution: int
    decision: str
    outgoing: bytes
    uploaded: bool


@dataclass(slots=True)
class NodeStore:
    """What a node's database says, and its log's own check."""

    events: list[Stored] = field(default_factory=list)
    command_cursor: Head = field(default_factory=Head)
    runs: dict[str, NodeRun] = field(default_factory=dict)
    summaries: dict[str, NodeSummary] = field(default_factory=dict)
    # The log's entries in order: action and facts.
    log: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)
    log_fault: str = ""


@dataclass(slots=True)
class CoordinatorStore:
    """What the coordinator's database says, and its log's own check."""

    jobs: dict[str, str] = field(default_factory=dict)
    runs: dict[str, str] = field(default_factory=dict)
    events: dict[str, list[Stored]] = field(default_factory=dict)
    commands: dict[str, list[Stored]] = field(default_factory=dict)
    cursors: dict[str, Head] = field(default_factory=dict)
    node_states: dict[str, str] = field(default_factory=dict)
    summaries: dict[str, bytes] = field(default_factory=dict)
    statements: set[str] = field(default_factory=set)
    log_fault: str = ""


@dataclass(slots=True)
class SeenJob:
    """A job as its researcher saw it."""

    accepted: bool
    state: str
    # Seconds from the submission to the end, None if none was seen; and the most it may be.
    took: float | None
    most: float
    seen: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(slots=True)
class Evidence:
    """All that the checks look at."""

    nodes: dict[str, NodeStore] = field(default_factory=dict)
    coordinator: CoordinatorStore = field(default_factory=CoordinatorStore)
    jobs: dict[str, SeenJob] = field(default_factory=dict)
    # Words of failed proofs, wrong figures, runs that lived on, what the workload stumbled over.
    unproven: list[str] = field(default_factory=list)
    wrong_figures: list[str] = field(default_factory=list)
    left_over: list[str] = field(default_factory=list)
    mistakes: list[str] = field(default_factory=list)
    # Where to look for what must not be there, by name; and what that is.
    places: dict[str, bytes] = field(default_factory=dict)
    canaries: Sequence[bytes] = ()
    secrets: Sequence[bytes] = ()
    logs: dict[str, bytes] = field(default_factory=dict)
    # The coordinator's clock was ahead for a while: it has ended runs before their time, whose answers were on their way.
    hurried: bool = False
    # The federation as it is after all: nodes that do not connect, a probe job that did not complete.
    unhealed: list[str] = field(default_factory=list)


Check = Callable[[Evidence], list[str]]

_UNANSWERED: Final = frozenset({RunState.EXPIRED.value, RunState.CANCELLED.value})


def no_job_is_lost(evidence: Evidence) -> list[str]:
    """Every accepted job is known and has come to an end in its time."""
    found = []
    for job_id, job in evidence.jobs.items():
        if not job.accepted:
            continue
        stored = evidence.coordinator.jobs.get(job_id)
        if stored is None:
            found.append(f"job {job_id} was accepted and is not stored")
        elif stored not in JOB_TERMINAL:
            found.append(f"job {job_id} is still {stored}")
        elif job.took is None or job.took > job.most:
            found.append(f"job {job_id} ended after {job.took} s, allowed are {job.most} s")
        elif job.state != stored:
            found.append(f"job {job_id} was shown as {job.state} and is {stored}")
    return found


def nobody_invents_a_job(evidence: Evidence) -> list[str]:
    """What is stored was asked."""
    return [f"job {job} was never asked" for job in evidence.coordinator.jobs if job not in evidence.jobs]


def runs_end_at_both_sides(evidence: Evidence) -> list[str]:
    """A node's run has ended, and the coordinator says of it what the node says.

    At the deadline both end a run, each by its own clock, and an end is final:
    one may then call it expired that the other cancelled, or declined because
    the offer came after the deadline. None of these is an answer. A coordinator
    whose clock was ahead has ended runs that nodes have answered meanwhile.
    """
    found = []
    given_up = {RunState.EXPIRED.value} if evidence.hurried else set()
    for name, node in evidence.nodes.items():
        for run_id, run in node.runs.items():
            told = evidence.coordinator.runs.get(run_id)
            if run.state not in RUN_TERMINAL:
                found.append(f"run {run_id} at {name} is still {run.state}")
            elif told != run.state and told not in given_up and not (told in _UNANSWERED and _is_unanswered(run)):
                found.append(f"run {run_id} at {name} is {run.state}, the coordinator says {told}")
    return found


def _is_unanswered(run: NodeRun) -> bool:
    late = (RunState.DECLINED.value, RunReason.DEADLINE_PASSED.value)
    return run.state in _UNANSWERED or (run.state, run.reason) == late


def one_release_per_run(evidence: Evidence) -> list[str]:
    """At most one release per run, of the same bytes at both sides; none is stranded."""
    found = []
    for name, node in evidence.nodes.items():
        logged = Counter(facts["run"] for action, facts in node.log if action == "summary_released")
        told = Counter(_released_in(node.events))
        found += [f"{count} releases of run {run} in the log of {name}" for run, count in logged.items() if count > 1]
        found += [f"{count} releases of run {run} told by {name}" for run, count in told.items() if count > 1]
        released = {run for run, row in node.summaries.items() if row.decision == "RELEASE"}
        found += [f"run {run} at {name}: stored, logged and told differ" for run in released ^ set(logged)]
        found += [f"run {run} at {name}: logged and told differ" for run in set(told) ^ set(logged)]
        for run in sorted(released):
            got = evidence.coordinator.summaries.get(run)
            if got is None:
                found.append(f"run {run} of {name} was released and never arrived")
            elif got != node.summaries[run].outgoing:
                found.append(f"run {run} of {name} arrived with other bytes")
    known = {run for node in evidence.nodes.values() for run in node.summaries}
    found += [f"a summary of run {run} is of no node" for run in evidence.coordinator.summaries if run not in known]
    return found


def _released_in(events: Sequence[Stored]) -> Iterator[str]:
    for event in events:
        body = node_service_pb2.EventBody.FromString(event.body)
        if body.WhichOneof("body") == "summary_released":
            yield body.summary_released.run_id


def releases_follow_their_checks(evidence: Evidence) -> list[str]:
    """Each release: admitted under an approval, started, then decided on, in this order in the node's log."""
    found = []
    for name, node in evidence.nodes.items():
        places: dict[str, dict[str, int]] = defaultdict(dict)
        for index, (action, facts) in enumerate(node.log):
            run = str(facts.get("run", ""))
            step = {"offer_accepted": "approved", "job_approved": "approved"}.get(action, action)
            # The first approval, the last execution.
            if step != "approved" or "approved" not in places[run]:
                places[run][step] = index
        for run, steps in places.items():
            if "summary_released" not in steps:
                continue
            wanted = [steps.get("approved"), steps.get("execution_started"), steps["summary_released"]]
            if "release_decided" in steps:
                wanted.insert(2, steps["release_decided"])
            order = [index for index in wanted if index is not None]
            if len(order) < len(wanted) or order != sorted(order):
                found.append(f"run {run} at {name} was released out of order: {steps}")
    return found


def the_highest_execution_commits(evidence: Evidence) -> list[str]:
    """What was committed is of the highest execution that was ever started."""
    found = []
    for name, node in evidence.nodes.items():
        started: dict[str, int] = {}
        released: dict[str, int] = {}
        for action, facts in node.log:
            run, execution = str(facts.get("run", "")), int(facts.get("execution", 0))
            if action == "execution_started":
                if execution <= started.get(run, 0):
                    found.append(f"run {run} at {name}: execution {execution} started after {started[run]}")
                started[run] = execution
            elif action == "summary_released":
                released[run] = execution
        for run, summary in node.summaries.items():
            numbers = {summary.execution, node.runs[run].execution, started.get(run), released.get(run)}
            if len(numbers - {None} if run not in released else numbers) != 1:
                found.append(f"run {run} at {name}: committed {summary.execution}, started {started.get(run)}")
    return found


def runs_move_along_the_graph(evidence: Evidence) -> list[str]:
    """Each reported state follows from the one before by one transition; no end is left."""
    edges = {(before, after) for (before, _), after in RUN_TRANSITIONS.items()}
    found = []
    for name, node in evidence.nodes.items():
        last: dict[str, RunState] = {}
        for event in node.events:
            body = node_service_pb2.EventBody.FromString(event.body)
            if body.WhichOneof("body") != "run_reported":
                continue
            run, state = body.run_reported.run_id, RunState(types_pb2.Run.State.Name(body.run_reported.state))
            before = last.get(run, RunState.OFFERED)
            if before != state and (before, state) not in edges:
                found.append(f"run {run} at {name} went from {before} to {state}")
            last[run] = state
    for job_id, job in evidence.jobs.items():
        for run, states in job.seen.items():
            ends = [state for state in states[:-1] if state in RUN_TERMINAL]
            if ends:
                found.append(f"run {run} of job {job_id} was shown to leave {ends[0]}")
    return found


def chains_agree(evidence: Evidence) -> list[str]:
    """Both outboxes are whole chains, the same at both ends, with the cursors at their heads."""
    found, central = [], evidence.coordinator
    for name, node in evidence.nodes.items():
        events, commands = central.events.get(name, []), central.commands.get(name, [])
        found += [f"events of {name}: {fault}" for fault in (_broken(node.events), _broken(events)) if fault]
        found += [f"commands to {name}: {fault}" for fault in (_broken(commands),) if fault]
        if node.events != events:
            found.append(f"{name} has {len(node.events)} events, the coordinator {len(events)}, or they differ")
        if central.cursors.get(name, Head()) != _head(node.events):
            found.append(f"the cursor of {name}'s events is not at their head")
        if node.command_cursor != _head(commands):
            found.append(f"{name} has applied commands up to {node.command_cursor.seq}, there are {len(commands)}")
    return found


def _head(entries: Sequence[Stored]) -> Head:
    return Head(entries[-1].seq, entries[-1].hash) if entries else Head(0, CHAIN_START)


def _broken(entries: Sequence[Stored]) -> str:
    head = Head()
    for entry in entries:
        head = head.after(entry.body)
        if (head.seq, head.hash) != (entry.seq, entry.hash):
            return f"entry {entry.seq} does not continue the chain"
    return ""


def no_cancelled_run_lives(evidence: Evidence) -> list[str]:
    """Ten seconds after a run was shown as cancelled, no process of it lives."""
    return [f"processes of run {run} live on" for run in evidence.left_over]


def results_are_proven(evidence: Evidence) -> list[str]:
    """Every result verifies from the pinned root."""
    return list(evidence.unproven)


def results_are_right(evidence: Evidence) -> list[str]:
    """Every figure is that of the pooled computation."""
    return list(evidence.wrong_figures)


def logs_are_whole(evidence: Evidence) -> list[str]:
    """The audit logs recount."""
    faults = {"the coordinator": evidence.coordinator.log_fault}
    faults |= {name: node.log_fault for name, node in evidence.nodes.items()}
    return [f"the log of {name}: {fault}" for name, fault in faults.items() if fault]


def nothing_leaked(evidence: Evidence) -> list[str]:
    """No sample, genotype row or path of a node is anywhere but at the node."""
    return [
        f"{canary[:40]!r} is in {name}"
        for name, content in evidence.places.items()
        for canary in evidence.canaries
        if canary in content
    ]


def no_secret_is_logged(evidence: Evidence) -> list[str]:
    """No key and no token is in a log."""
    return [
        f"a secret is in the log of {name}"
        for name, content in evidence.logs.items()
        if any(secret in content for secret in evidence.secrets)
    ]


def the_federation_is_whole_again(evidence: Evidence) -> list[str]:
    """After all faults: every node is connected, none is set apart, and a new job completes."""
    apart = {name: state for name, state in evidence.coordinator.node_states.items() if state != "ACTIVE"}
    return [*evidence.unhealed, *(f"node {name} is {state}" for name, state in apart.items())]


def the_workload_was_served(evidence: Evidence) -> list[str]:
    """No client was answered what it cannot make sense of."""
    return list(evidence.mistakes)


CHECKS: Final[Mapping[str, Check]] = {
    check.__name__.replace("_", " "): check
    for check in (
        no_job_is_lost,
        nobody_invents_a_job,
        runs_end_at_both_sides,
        one_release_per_run,
        releases_follow_their_checks,
        the_highest_execution_commits,
        runs_move_along_the_graph,
        chains_agree,
        no_cancelled_run_lives,
        results_are_proven,
        results_are_right,
        logs_are_whole,
        nothing_leaked,
        no_secret_is_logged,
        the_federation_is_whole_again,
        the_workload_was_served,
    )
}

# What holds once everything has been told, which may take a moment longer than all jobs' ends.
EVENTUAL: Final = (runs_end_at_both_sides, one_release_per_run, chains_agree)


def verdicts(evidence: Evidence) -> dict[str, list[str]]:
    """Return what each check found."""
    return {name: check(evidence) for name, check in CHECKS.items()}
