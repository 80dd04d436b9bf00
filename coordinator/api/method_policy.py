"""Who may call what, how large, how often: one row per method, no row no call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from coordinator.api.caller import Role
from hansa.contract.limits import CHUNK_BYTES, CSR_BYTES, JOB_BYTES, MANIFEST_BYTES, MESSAGE_BYTES

_SMALL: Final = 8 << 10
_FRAME: Final = 4 << 10

_RESEARCHER: Final = frozenset({Role.RESEARCHER})
_OPERATOR: Final = frozenset({Role.OPERATOR})
_PEOPLE: Final = _RESEARCHER | _OPERATOR
_NODE: Final = frozenset({Role.NODE})
_GUEST: Final = frozenset({Role.GUEST})


@dataclass(frozen=True, slots=True)
class MethodPolicy:
    """The rules of one method.

    Attributes:
        roles: who may call it.
        mutating: it changes something; its request has a ``request_id`` or is
            safe to repeat by itself.
        max_bytes: largest message of a request.
        per_minute: calls of one caller, also as a burst.
        at_once: calls of one caller under way at the same time.
    """

    roles: frozenset[Role]
    mutating: bool = False
    max_bytes: int = _SMALL
    per_minute: int = 600
    at_once: int = 64


def _change(roles: frozenset[Role], max_bytes: int = _SMALL, per_minute: int = 600) -> MethodPolicy:
    return MethodPolicy(roles, mutating=True, max_bytes=max_bytes, per_minute=per_minute)


_JOBS: Final = "/hansa.v1.JobService/"
_CATALOGUE: Final = "/hansa.v1.CatalogueService/"
_ADMIN: Final = "/hansa.v1.AdminService/"
_NODES: Final = "/hansa.v1.NodeService/"

METHOD_POLICY: Final[Mapping[str, MethodPolicy]] = {
    f"{_JOBS}SubmitJob": _change(_RESEARCHER, max_bytes=JOB_BYTES + _FRAME),
    f"{_JOBS}GetJob": MethodPolicy(_PEOPLE, per_minute=3000),
    f"{_JOBS}ListJobs": MethodPolicy(_PEOPLE),
    f"{_JOBS}WatchJob": MethodPolicy(_PEOPLE),
    f"{_JOBS}CancelJob": _change(_RESEARCHER),
    f"{_JOBS}GetResult": MethodPolicy(_RESEARCHER),
    f"{_CATALOGUE}ListAnalyses": MethodPolicy(_PEOPLE),
    f"{_CATALOGUE}GetAnalysis": MethodPolicy(_PEOPLE),
    f"{_CATALOGUE}ListDatasets": MethodPolicy(_PEOPLE),
    f"{_CATALOGUE}ListNodes": MethodPolicy(_PEOPLE),
    f"{_ADMIN}AddPerson": _change(_OPERATOR),
    f"{_ADMIN}ListPersons": MethodPolicy(_OPERATOR),
    f"{_ADMIN}InviteNode": _change(_OPERATOR),
    f"{_ADMIN}ConfirmNode": _change(_OPERATOR),
    f"{_ADMIN}SuspendNode": _change(_OPERATOR),
    f"{_ADMIN}ResumeNode": _change(_OPERATOR),
    f"{_ADMIN}RevokeNode": _change(_OPERATOR),
    f"{_ADMIN}PublishAnalysis": _change(_OPERATOR, max_bytes=MANIFEST_BYTES + _FRAME),
    f"{_ADMIN}ListAudit": MethodPolicy(_OPERATOR),
    # A guest's secret has 256 bits; the rate spares our processor, not the secret.
    "/hansa.v1.EnrolmentService/Enrol": _change(_GUEST, max_bytes=CSR_BYTES + _FRAME, per_minute=120),
    # One session stands and one takes over; the others are those whose end the coordinator has not seen yet.
    f"{_NODES}Connect": MethodPolicy(_NODE, mutating=True, max_bytes=MESSAGE_BYTES, per_minute=120, at_once=4),
    f"{_NODES}UploadSummary": MethodPolicy(_NODE, mutating=True, max_bytes=CHUNK_BYTES + _FRAME, at_once=4),
    f"{_NODES}RenewCertificate": _change(_NODE, max_bytes=CSR_BYTES + _FRAME, per_minute=30),
}
