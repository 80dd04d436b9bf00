from __future__ import annotations

import json
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hansa.contract.decision import parse_decision
from hansa.contract.envelope import DECISION_TYPE, verify
from hansa.runtime.drain import DrainFile
from hansa.sdk.keys import create_key, load_private_key
from node_agent.config import StateFolder, create_state_folder
from node_agent.policy.file import load_policy, store_policy
from node_agent.policy.policy import Policy
from tests.support.agent_double import FAILED, WAITING, AgentDouble, running_agent
from tests.support.node_commands import hansa_node


@pytest.fixture
def state(tmp_path: Path) -> StateFolder:
    state = create_state_folder(tmp_path / "state")
    store_policy(state.policy_file, Policy())
    return state


@pytest.fixture
def agent(state: StateFolder) -> Iterator[AgentDouble]:
    with running_agent(AgentDouble(state)) as double:
        yield double


def reason_of(text: str) -> str:
    return str(json.loads(text)["error"]["reason"])


def test_init_makes_a_closed_folder_with_a_policy_that_admits_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    done = hansa_node(folder, "init")
    assert done.code == 0
    assert "enrol TOKEN" in done.out
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert load_policy(folder / "policy.toml") == Policy()
    (folder / "policy.toml").write_text('[release]\nmode = "auto"\n')
    assert hansa_node(folder, "init").code == 0
    assert load_policy(folder / "policy.toml").release.mode == "auto"


def test_drain_holds_until_it_is_taken_back_whether_an_agent_runs_or_not(state: StateFolder) -> None:
    assert json.loads(hansa_node(state.path, "drain", "--output", "json").out) == {"draining": True}
    since = DrainFile(state.path).since()
    assert since is not None
    assert hansa_node(state.path, "drain").code == 0
    assert DrainFile(state.path).since() == since
    assert hansa_node(state.path, "drain", "--off").code == 0
    assert not DrainFile(state.path).is_set()
    assert hansa_node(state.path, "drain", "--off").code == 0


def test_the_state_folder_may_be_named_in_five_ways(tmp_path: Path, state: StateFolder) -> None:
    profile = tmp_path / "profile.toml"
    profile.write_text('state = "state"\n')
    show = ("policy", "show", "--output", "json")
    for done in (
        hansa_node(state.path, *show),
        hansa_node(None, *show, "--state", str(state.path)),
        hansa_node(None, "policy", "--profile", str(profile), "show", "--output", "json"),
        hansa_node(None, *show, env={"HANSA_NODE_STATE": str(state.path)}),
        hansa_node(None, *show, env={"HANSA_NODE_PROFILE": str(profile)}),
    ):
        assert done.code == 0, done.err
        assert json.loads(done.out)["policy"]["release"] == {"mode": "manual"}


@pytest.mark.parametrize(
    "arguments",
    [
        ("airlock", "list"),
        ("--state", "x", "--profile", "y", "status"),
        ("nonsense",),
        ("airlock", "release", WAITING),
        ("airlock", "release", WAITING, "--person", "p", "--key", "k", "--reason", " ", "--state", "x"),
        ("airlock", "release", WAITING, "--reason", "fine", "--state", "x"),
        ("dataset", "add", "../x", "--vcf", "v", "--samples", "s"),
        ("dataset", "add", "x", "--vcf", "/missing", "--samples", "/missing"),
        ("worker", "--pool", "other"),
        ("policy", "allow", "person", "ada"),
    ],
)
def test_wrong_usage_has_its_own_exit_code(arguments: tuple[str, ...]) -> None:
    done = hansa_node(None, *arguments)
    assert done.code == 2
    assert done.err.startswith("error: USAGE: ")
    assert done.err.count("\n") == 1


def test_errors_for_programs_are_one_line_of_json(tmp_path: Path) -> None:
    done = hansa_node(tmp_path / "missing", "status", "--output", "json")
    assert (done.code, done.out) == (1, "")
    assert json.loads(done.err)["error"] == {
        "reason": "STATE_FOLDER_INVALID",
        "message": f"State folder {tmp_path}/missing: there is none; make it with `hansa-node init`.",
        "field": "state",
    }


@pytest.mark.parametrize("command", [("status",), ("airlock", "list"), ("job", "list"), ("dataset", "list")])
def test_without_an_agent_the_exit_code_says_so(state: StateFolder, command: tuple[str, ...]) -> None:
    done = hansa_node(state.path, *command)
    assert done.code == 3
    assert done.err.startswith("error: AGENT_UNREACHABLE: ")


def test_a_profile_that_holds_anything_else_is_refused(tmp_path: Path) -> None:
    profile = tmp_path / "profile.toml"
    profile.write_text('states = "state"\n')
    done = hansa_node(None, "--profile", str(profile), "status", "--output", "json")
    assert (done.code, reason_of(done.err)) == (1, "CONFIG_INVALID")


def test_a_policy_is_changed_in_its_file_when_no_agent_runs(state: StateFolder) -> None:
    assert hansa_node(state.path, "policy", "set", "release", "auto").code == 0
    assert hansa_node(state.path, "policy", "allow", "submitter", "ada").code == 0
    allowed = hansa_node(state.path, "policy", "allow", "analysis", "not-here@9.9")
    assert allowed.code == 0
    policy = load_policy(state.policy_file)
    assert (policy.release.mode, policy.admission.submitters) == ("auto", ("ada",))
    assert hansa_node(state.path, "policy", "disallow", "submitter", "ada").code == 0
    assert load_policy(state.policy_file).admission.submitters == ()


def test_a_policy_is_changed_through_the_agent_when_it_runs(agent: AgentDouble) -> None:
    allowed = hansa_node(agent.state.path, "policy", "allow", "analysis", "not-here@9.9")
    assert "does not approve" in allowed.err
    done = hansa_node(agent.state.path, "policy", "set", "disclosure.min_cohort", "30", "--output", "json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["policy"]["disclosure"]["min_cohort"] == 30
    assert load_policy(agent.state.policy_file).disclosure.min_cohort == 30


def test_a_refused_change_leaves_the_policy_as_it_was(state: StateFolder) -> None:
    before = state.policy_file.read_bytes()
    for arguments in (("set", "disclosure.min_cohort", "5"), ("set", "nothing", "5"), ("disallow", "submitter", "x")):
        done = hansa_node(state.path, "policy", *arguments, "--output", "json")
        assert (done.code, reason_of(done.err)) == (1, "POLICY_INVALID")
    assert state.policy_file.read_bytes() == before


@pytest.fixture
def checker(tmp_path: Path) -> tuple[str, ...]:
    """Return how an output checker names themselves on the command line."""
    create_key(tmp_path / "pia.key")
    return ("--person", "pia", "--key", str(tmp_path / "pia.key"))


def test_a_release_is_signed_by_its_checker_over_the_digest_that_was_shown(
    agent: AgentDouble, checker: tuple[str, ...]
) -> None:
    done = hansa_node(agent.state.path, "airlock", "release", WAITING[:4], *checker, "--reason", " checked ")
    assert done.code == 0, done.err
    assert "RELEASED" in done.out
    assert "sha256:" + "d" * 64 in done.out
    ((signed, route),) = [(one["signed"], one["route"]) for one in agent.decisions]
    verify(signed, payload_type=DECISION_TYPE, key=load_private_key(Path(checker[3])).public_key())
    decision = parse_decision(signed.payload)
    assert (route, decision.decision, decision.checker, decision.reason) == ("release", "RELEASE", "pia", "checked")
    assert (decision.node, decision.run_id, decision.summary_digest) == ("FI", WAITING, "sha256:" + "d" * 64)


def test_a_run_can_be_withheld_and_then_not_released(agent: AgentDouble, checker: tuple[str, ...]) -> None:
    path = agent.state.path
    assert hansa_node(path, "airlock", "withhold", WAITING, *checker, "--reason", "too detailed").code == 0
    done = hansa_node(path, "airlock", "release", WAITING, *checker, "--reason", "after all", "--output", "json")
    assert (done.code, reason_of(done.err)) == (1, "RELEASE_CONFLICT")
    assert [parse_decision(one["signed"].payload).decision for one in agent.decisions] == ["WITHHOLD"]


@pytest.mark.parametrize(("name", "reason"), [("PIA", "fine"), ("pia", "naïve"), ("pia", "a\nb")])
def test_what_cannot_be_signed_is_said_before_anything_is_sent(
    agent: AgentDouble, checker: tuple[str, ...], name: str, reason: str
) -> None:
    given = ("--person", name, *checker[2:])
    done = hansa_node(agent.state.path, "airlock", "release", WAITING, *given, "--reason", reason, "--output", "json")
    assert (done.code, reason_of(done.err)) == (1, "DECISION_INVALID")
    assert agent.decisions == []


def test_a_beginning_that_names_several_runs_or_none_is_refused(agent: AgentDouble) -> None:
    for text in ("0", "ffff", "*", ""):
        done = hansa_node(agent.state.path, "job", "show", text, "--output", "json")
        assert (done.code, reason_of(done.err)) == (1, "RUN_UNKNOWN")


def test_the_airlock_shows_what_would_leave(agent: AgentDouble) -> None:
    listed = hansa_node(agent.state.path, "airlock", "list")
    assert WAITING[:12] in listed.out
    assert FAILED[:12] not in listed.out
    shown = hansa_node(agent.state.path, "airlock", "show", WAITING)
    assert shown.code == 0, shown.err
    assert "15:28365618:A:G" in shown.out
    assert "sha256:" + "d" * 64 in shown.out
    cells = [line.split() for line in shown.out.splitlines() if line.strip().startswith("15:")]
    assert cells == [["15:28365618:A:G", "all", "41", "99"], ["15:28365618:A:G", "female", "-", "-"]]


def test_a_failed_run_shows_its_incident_and_its_log_with_escapes_made_harmless(agent: AgentDouble) -> None:
    path = agent.state.path
    folder = agent.state.runs / FAILED / "1.ctl"
    folder.mkdir(parents=True)
    (folder / "log").write_bytes(b"first\n\x1b]0;owned\x07 \xff last\n")
    shown = hansa_node(path, "job", "show", FAILED[:6])
    assert "ANALYSIS_FAILED" in shown.out
    assert "inc-1" in shown.out
    assert str(folder / "log") in shown.out
    log = hansa_node(path, "job", "show", FAILED, "--log")
    assert log.code == 0, log.err
    assert "\x1b" not in log.out
    assert "\\x1b]0;owned\\x07" in log.out
    assert log.out.startswith("first\n")


def test_a_log_that_is_a_link_or_is_missing_is_refused(agent: AgentDouble, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("not a log")
    folder = agent.state.runs / FAILED / "1.ctl"
    folder.mkdir(parents=True)
    for linked in (False, True):
        if linked:
            (folder / "log").symlink_to(tmp_path / "secret")
        done = hansa_node(agent.state.path, "job", "show", FAILED, "--log", "--output", "json")
        assert (done.code, reason_of(done.err)) == (1, "FILE_INVALID")
        assert "not a log" not in done.out


def test_datasets_can_be_removed_by_their_id(agent: AgentDouble) -> None:
    agent.datasets["FI-x"] = {"id": "FI-x", "people": 99, "variants": 7, "skipped": {}, "build": "GRCh37"}
    assert "FI-x" in hansa_node(agent.state.path, "dataset", "list").out
    assert hansa_node(agent.state.path, "dataset", "remove", "FI-x").code == 0
    done = hansa_node(agent.state.path, "dataset", "remove", "FI-x", "--output", "json")
    assert (done.code, reason_of(done.err)) == (1, "DATASET_UNKNOWN")
    assert "No datasets." in hansa_node(agent.state.path, "dataset", "list").out


def test_commands_work_in_a_state_folder_that_lies_deep(tmp_path: Path) -> None:
    state = create_state_folder(tmp_path / ("deep" * 20) / ("deeper" * 20))
    store_policy(state.policy_file, Policy())
    with running_agent(AgentDouble(state)):
        done = hansa_node(state.path, "status", "--output", "json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["node"] == "FI"


def test_what_answers_on_the_socket_but_is_no_agent_is_unreachable(state: StateFolder) -> None:
    double = AgentDouble(state)
    double.runs = {"x": []}  # type: ignore[dict-item]
    with running_agent(double):
        done = hansa_node(state.path, "airlock", "list")
    assert done.code == 3


def test_no_command_but_enrolment_loads_grpc() -> None:
    program = (
        "import sys; from importlib import import_module\n"
        "from node_agent.cli.main import _COMMANDS\n"
        "[import_module(f'node_agent.cli.{name}') for name in set(_COMMANDS.values())]\n"
        "import node_agent.local_api.client\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('grpc', 'celery', 'snakemake')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_doctor_names_each_fault_with_its_remedy(state: StateFolder) -> None:
    (state.keys / "pending.key").write_text("")
    (state.keys / "pending.key").chmod(0o644)
    state.policy_file.write_text("[admissions]\n")
    done = hansa_node(state.path, "doctor", "--output", "json")
    assert done.code == 1, done.err
    found = {one["check"]: one for one in json.loads(done.out)["checks"]}
    assert found["state folder"]["outcome"] == "ok"
    assert found["keys"]["outcome"] == "failed"
    assert "chmod 600" in found["keys"]["remedy"]
    assert found["policy"]["outcome"] == "failed"
    assert "admissions" in found["policy"]["detail"]
    assert "enrol" in found["certificate"]["remedy"]
    assert all(one["remedy"] for one in found.values() if one["outcome"] != "ok")
