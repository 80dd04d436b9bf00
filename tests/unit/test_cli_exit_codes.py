import pytest

from hansa.cli import failures
from hansa.contract.errors import HansaError, Reason
from hansa.contract.states import JOB_TERMINAL, JobState


@pytest.mark.parametrize("state", sorted(JOB_TERMINAL))
def test_every_end_of_a_job_has_its_exit_code(state: JobState) -> None:
    expected = {JobState.COMPLETED: 0, JobState.EXPIRED: 4}.get(state, 1)
    assert failures.of_job(state.value) == expected


@pytest.mark.parametrize("reason", list(Reason))
def test_an_error_is_wrong_usage_before_any_contact_and_a_refusal_after(reason: Reason) -> None:
    error = HansaError(reason)
    # Evidence that does not hold is an answer, found without any contact.
    always = {Reason.COORDINATOR_UNREACHABLE: 3, Reason.EVIDENCE_INVALID: failures.NOT_PROVEN}.get(reason)
    if error.retry_seconds:
        always = failures.COME_AGAIN
    assert failures.of_error(error, contacted=False) == (always or 2)
    assert failures.of_error(error, contacted=True) == (always or 1)


def test_a_fault_of_ours_is_one_line_without_its_details(capsys: pytest.CaptureFixture[str]) -> None:
    assert failures.report(ValueError("sample HG00096"), contacted=True, as_json=False) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: INTERNAL: ")
    assert len(err.splitlines()) == 1
    assert "HG00096" not in err
