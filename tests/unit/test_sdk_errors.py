import grpc
import pytest

from coordinator.api.errors import status_of
from hansa.contract.errors import HansaError, Reason
from hansa.sdk.errors import remote_error

KEY = "grpc-status-details-bin"


def failed(code: grpc.StatusCode, *trailing: tuple[str, bytes]) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailing), details="internals")


def test_a_refusal_comes_back_with_its_reason_words_and_field() -> None:
    sent = HansaError(Reason.DATASET_UNKNOWN, "No node holds X.", field="datasets", log="never sent")
    status = status_of(sent).SerializeToString()
    error = remote_error(failed(grpc.StatusCode.NOT_FOUND, (KEY, status)))
    assert (error.reason, error.public, error.field) == (sent.reason, sent.public, sent.field)
    assert "never sent" not in str(error)


def test_a_reason_of_a_newer_coordinator_is_told_in_words() -> None:
    status = status_of(HansaError(Reason.DATASET_UNKNOWN, "So it is."))
    status.details[0].value = status.details[0].value.replace(b"DATASET_UNKNOWN", b"DATASET_UNHEARD")
    error = remote_error(failed(grpc.StatusCode.NOT_FOUND, (KEY, status.SerializeToString())))
    assert (error.reason, error.public) == (Reason.INTERNAL, "DATASET_UNHEARD: So it is.")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (grpc.StatusCode.UNAVAILABLE, Reason.COORDINATOR_UNREACHABLE),
        (grpc.StatusCode.DEADLINE_EXCEEDED, Reason.COORDINATOR_UNREACHABLE),
        (grpc.StatusCode.UNAUTHENTICATED, Reason.UNAUTHENTICATED),
        (grpc.StatusCode.UNKNOWN, Reason.INTERNAL),
    ],
)
def test_a_status_without_a_reason_is_grpc_s_own(code: grpc.StatusCode, reason: Reason) -> None:
    error = remote_error(failed(code))
    assert error.reason is reason
    assert "internals" not in error.public


@pytest.mark.parametrize("data", [b"\xff\xff\xff", b""])
def test_details_that_cannot_be_read_are_not_trusted(data: bytes) -> None:
    assert remote_error(failed(grpc.StatusCode.UNAVAILABLE, (KEY, data))).reason is Reason.COORDINATOR_UNREACHABLE
