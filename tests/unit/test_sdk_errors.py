import grpc
import pytest
from google.rpc import error_details_pb2

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


def test_when_to_ask_again_comes_along() -> None:
    sent = HansaError(Reason.RATE_LIMITED, retry_seconds=2.5)
    error = remote_error(failed(grpc.StatusCode.RESOURCE_EXHAUSTED, (KEY, status_of(sent).SerializeToString())))
    assert error.retry_seconds == 2.5


@pytest.mark.parametrize("reason", [Reason.DATASET_UNKNOWN, Reason.MESSAGE_TOO_LARGE, Reason.RATE_LIMITED])
def test_without_a_hint_nobody_is_asked_again(reason: Reason) -> None:
    status = status_of(HansaError(reason, retry_seconds=0)).SerializeToString()
    assert remote_error(failed(grpc.StatusCode.UNKNOWN, (KEY, status))).retry_seconds == 0


def test_a_hint_that_lies_in_the_past_or_cannot_be_read_is_none() -> None:
    status = status_of(HansaError(Reason.RATE_LIMITED, retry_seconds=1))
    hint = error_details_pb2.RetryInfo()
    hint.retry_delay.FromSeconds(-5)
    status.details[1].Pack(hint)
    assert remote_error(failed(grpc.StatusCode.UNKNOWN, (KEY, status.SerializeToString()))).retry_seconds == 0
    status.details[1].value = b"\xff"
    assert remote_error(failed(grpc.StatusCode.UNKNOWN, (KEY, status.SerializeToString()))).retry_seconds == 0


def test_a_server_that_is_full_before_it_looks_is_asked_again() -> None:
    trailing = grpc.aio.Metadata()
    full = grpc.aio.AioRpcError(
        grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.aio.Metadata(), trailing, details="Concurrent RPC limit exceeded!"
    )
    large = grpc.aio.AioRpcError(
        grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.aio.Metadata(), trailing, details="Received message larger than max"
    )
    assert remote_error(full).retry_seconds > 0
    assert remote_error(large).retry_seconds == 0


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
