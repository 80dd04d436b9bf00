"""Every cause of refusal or failure that crosses a boundary, as one catalogue.

A reason is wire format: stable, machine-readable, never renamed. It is what
the tests, the exit codes and the agent's reactions are written against; texts
are for people and may improve.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

DOMAIN: Final = "hansa.v1"


class Code(enum.IntEnum):
    """The canonical gRPC codes, by number; grpc itself is not imported here."""

    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class Reason(enum.StrEnum):
    """Stable cause of a refusal by a service or by a local command."""

    # anybody
    INTERNAL = "INTERNAL"
    MALFORMED = "MALFORMED"
    RATE_LIMITED = "RATE_LIMITED"
    MESSAGE_TOO_LARGE = "MESSAGE_TOO_LARGE"
    CALL_TOO_LONG = "CALL_TOO_LONG"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    COORDINATOR_UNREACHABLE = "COORDINATOR_UNREACHABLE"
    CONFIG_INVALID = "CONFIG_INVALID"
    KEY_INVALID = "KEY_INVALID"
    FILE_INVALID = "FILE_INVALID"
    # jobs
    ANALYSIS_UNKNOWN = "ANALYSIS_UNKNOWN"
    ANALYSIS_EXISTS = "ANALYSIS_EXISTS"
    MANIFEST_INVALID = "MANIFEST_INVALID"
    DATASET_UNKNOWN = "DATASET_UNKNOWN"
    DATASETS_OVERLAP = "DATASETS_OVERLAP"
    BUILD_MISMATCH = "BUILD_MISMATCH"
    PARAMETER_UNKNOWN = "PARAMETER_UNKNOWN"
    PARAMETER_MISSING = "PARAMETER_MISSING"
    PARAMETER_INVALID = "PARAMETER_INVALID"
    QUORUM_INVALID = "QUORUM_INVALID"
    DEADLINE_INVALID = "DEADLINE_INVALID"
    SNAPSHOT_CHANGED = "SNAPSHOT_CHANGED"
    ENVELOPE_INVALID = "ENVELOPE_INVALID"
    IDEMPOTENCY_MISMATCH = "IDEMPOTENCY_MISMATCH"
    JOB_UNKNOWN = "JOB_UNKNOWN"
    JOB_NOT_ENDED = "JOB_NOT_ENDED"
    JOB_ENDED = "JOB_ENDED"
    RESULT_PURGED = "RESULT_PURGED"
    # people and nodes
    PERSON_EXISTS = "PERSON_EXISTS"
    PERSON_INVALID = "PERSON_INVALID"
    NODE_UNKNOWN = "NODE_UNKNOWN"
    NODE_EXISTS = "NODE_EXISTS"
    NODE_INVALID = "NODE_INVALID"
    NODE_STATE_CONFLICT = "NODE_STATE_CONFLICT"
    NODE_MISMATCH = "NODE_MISMATCH"
    NODE_NOT_CONFIRMED = "NODE_NOT_CONFIRMED"
    NODE_SUSPENDED = "NODE_SUSPENDED"
    NODE_QUARANTINED = "NODE_QUARANTINED"
    NODE_REVOKED = "NODE_REVOKED"
    CERTIFICATE_REFUSED = "CERTIFICATE_REFUSED"
    ENROLMENT_REFUSED = "ENROLMENT_REFUSED"
    FINGERPRINT_MISMATCH = "FINGERPRINT_MISMATCH"
    # the node protocol
    PROTOCOL_VIOLATION = "PROTOCOL_VIOLATION"
    VERSION_UNSUPPORTED = "VERSION_UNSUPPORTED"
    EPOCH_FENCED = "EPOCH_FENCED"
    SUMMARY_CONFLICT = "SUMMARY_CONFLICT"
    SUMMARY_CORRUPT = "SUMMARY_CORRUPT"
    RUN_UNKNOWN = "RUN_UNKNOWN"
    COORDINATOR_BEHIND = "COORDINATOR_BEHIND"
    NODE_NOT_RECONCILED = "NODE_NOT_RECONCILED"
    # a node's own commands
    AGENT_RUNNING = "AGENT_RUNNING"
    AGENT_UNREACHABLE = "AGENT_UNREACHABLE"
    STATE_FOLDER_INVALID = "STATE_FOLDER_INVALID"
    POLICY_INVALID = "POLICY_INVALID"
    DATASET_EXISTS = "DATASET_EXISTS"
    DATASET_INVALID = "DATASET_INVALID"
    DATASET_IN_USE = "DATASET_IN_USE"
    VCF_UNREADABLE = "VCF_UNREADABLE"
    VCF_TRUNCATED = "VCF_TRUNCATED"
    VCF_NOT_INDEXED = "VCF_NOT_INDEXED"
    VCF_RECORD_INVALID = "VCF_RECORD_INVALID"
    VCF_RECORD_DUPLICATE = "VCF_RECORD_DUPLICATE"
    VCF_SAMPLE_DUPLICATE = "VCF_SAMPLE_DUPLICATE"
    VCF_CONTIG_UNSUPPORTED = "VCF_CONTIG_UNSUPPORTED"
    BUILD_UNKNOWN = "BUILD_UNKNOWN"
    SAMPLES_INVALID = "SAMPLES_INVALID"
    SAMPLES_MISMATCH = "SAMPLES_MISMATCH"
    EXECUTION_SUPERSEDED = "EXECUTION_SUPERSEDED"
    RELEASE_CONFLICT = "RELEASE_CONFLICT"
    # trust
    DIRECTORY_INVALID = "DIRECTORY_INVALID"
    DIRECTORY_CHANGED = "DIRECTORY_CHANGED"
    PROJECT_NOT_ADMITTED = "PROJECT_NOT_ADMITTED"
    TRUST_INVALID = "TRUST_INVALID"
    TRUST_EXPIRED = "TRUST_EXPIRED"
    TRUST_ROLLBACK = "TRUST_ROLLBACK"
    TRUST_UNKNOWN = "TRUST_UNKNOWN"
    TRUST_THRESHOLD = "TRUST_THRESHOLD"
    VOTE_INVALID = "VOTE_INVALID"
    APPROVAL_INVALID = "APPROVAL_INVALID"
    APPROVAL_UNKNOWN = "APPROVAL_UNKNOWN"
    APPROVAL_CONFLICT = "APPROVAL_CONFLICT"
    SELF_APPROVAL = "SELF_APPROVAL"
    DECISION_INVALID = "DECISION_INVALID"
    STATEMENT_INVALID = "STATEMENT_INVALID"
    SEALED_INVALID = "SEALED_INVALID"
    PENDING_SECOND = "PENDING_SECOND"
    PROPOSAL_UNKNOWN = "PROPOSAL_UNKNOWN"
    LOG_FORKED = "LOG_FORKED"
    LOG_ENTRY_UNKNOWN = "LOG_ENTRY_UNKNOWN"
    NOTE_INVALID = "NOTE_INVALID"
    EVIDENCE_INVALID = "EVIDENCE_INVALID"
    # stores
    STORE_DAMAGED = "STORE_DAMAGED"
    STORE_IN_USE = "STORE_IN_USE"
    STORE_FENCED = "STORE_FENCED"
    STORE_FULL = "STORE_FULL"
    BACKUP_INVALID = "BACKUP_INVALID"


class RunReason(enum.StrEnum):
    """Why a run ended, as the researcher may know it.

    Nothing in here depends on a person's data but ``WITHHELD``, which has one
    wording for all causes.
    """

    # declined
    ANALYSIS_NOT_ADMITTED = "ANALYSIS_NOT_ADMITTED"
    SUBMITTER_NOT_ADMITTED = "SUBMITTER_NOT_ADMITTED"
    DATASET_NOT_OFFERED = "DATASET_NOT_OFFERED"
    SNAPSHOT_CHANGED = "SNAPSHOT_CHANGED"
    PARAMETER_INVALID = "PARAMETER_INVALID"
    REGION_TOO_LARGE = "REGION_TOO_LARGE"
    TOO_MANY_VARIANTS = "TOO_MANY_VARIANTS"
    JOB_INVALID = "JOB_INVALID"
    NODE_DRAINING = "NODE_DRAINING"
    NODE_BUSY = "NODE_BUSY"
    SIGNATURE_INVALID = "SIGNATURE_INVALID"
    JOB_REPLAYED = "JOB_REPLAYED"
    DIRECTORY_ROLLBACK = "DIRECTORY_ROLLBACK"
    DIRECTORY_BEHIND = "DIRECTORY_BEHIND"
    TRUST_EXPIRED = "TRUST_EXPIRED"
    NODE_NOT_IN_DIRECTORY = "NODE_NOT_IN_DIRECTORY"
    PROJECT_NOT_ADMITTED = "PROJECT_NOT_ADMITTED"
    RECIPIENT_MISMATCH = "RECIPIENT_MISMATCH"
    SEALING_REQUIRED = "SEALING_REQUIRED"
    APPROVAL_REFUSED = "APPROVAL_REFUSED"
    PASSPORT_MISSING = "PASSPORT_MISSING"
    LOG_FORKED = "LOG_FORKED"
    # failed
    ANALYSIS_FAILED = "ANALYSIS_FAILED"
    TIME_LIMIT = "TIME_LIMIT"
    MEMORY_LIMIT = "MEMORY_LIMIT"
    OUTPUT_MISSING = "OUTPUT_MISSING"
    OUTPUT_AMBIGUOUS = "OUTPUT_AMBIGUOUS"
    OUTPUT_KIND = "OUTPUT_KIND"
    OUTPUT_TOO_LARGE = "OUTPUT_TOO_LARGE"
    SUMMARY_INVALID = "SUMMARY_INVALID"
    STAGING_FAILED = "STAGING_FAILED"
    SANDBOX_FAILED = "SANDBOX_FAILED"
    RUN_LOST = "RUN_LOST"
    # withheld
    WITHHELD = "WITHHELD"
    # expired, cancelled
    DEADLINE_PASSED = "DEADLINE_PASSED"
    CANCELLED = "CANCELLED"


@dataclass(frozen=True, slots=True)
class Entry:
    """What the catalogue says of a reason: its code, and its words for people."""

    code: Code
    public: str


_C = Code
_INVALID, _EXISTS, _STATE = _C.INVALID_ARGUMENT, _C.ALREADY_EXISTS, _C.FAILED_PRECONDITION

CATALOGUE: Final[Mapping[Reason, Entry]] = {
    Reason.INTERNAL: Entry(_C.INTERNAL, "Internal error."),
    Reason.MALFORMED: Entry(_INVALID, "The request cannot be read."),
    Reason.RATE_LIMITED: Entry(_C.RESOURCE_EXHAUSTED, "Too many requests; try again later."),
    Reason.MESSAGE_TOO_LARGE: Entry(_C.RESOURCE_EXHAUSTED, "The request is larger than this method takes."),
    Reason.CALL_TOO_LONG: Entry(_C.DEADLINE_EXCEEDED, "The call took longer than this method may take."),
    Reason.UNAUTHENTICATED: Entry(_C.UNAUTHENTICATED, "Who calls is not known here."),
    Reason.PERMISSION_DENIED: Entry(_C.PERMISSION_DENIED, "The caller's role does not allow this."),
    Reason.COORDINATOR_UNREACHABLE: Entry(_C.UNAVAILABLE, "The coordinator cannot be reached."),
    Reason.CONFIG_INVALID: Entry(_INVALID, "The configuration is not valid."),
    Reason.KEY_INVALID: Entry(_INVALID, "The key is not an Ed25519 key in PEM form."),
    Reason.FILE_INVALID: Entry(_INVALID, "The file cannot be used."),
    Reason.ANALYSIS_UNKNOWN: Entry(_C.NOT_FOUND, "There is no such analysis; see `hansa analyses list`."),
    Reason.ANALYSIS_EXISTS: Entry(_EXISTS, "This name and version was published with other content."),
    Reason.MANIFEST_INVALID: Entry(_INVALID, "The manifest is not valid."),
    Reason.DATASET_UNKNOWN: Entry(_C.NOT_FOUND, "No node holds this dataset; see `hansa datasets list`."),
    Reason.DATASETS_OVERLAP: Entry(_INVALID, "A job may name one dataset per node."),
    Reason.BUILD_MISMATCH: Entry(_INVALID, "All datasets of a job must be of one genome build."),
    Reason.PARAMETER_UNKNOWN: Entry(_INVALID, "The analysis has no such parameter."),
    Reason.PARAMETER_MISSING: Entry(_INVALID, "A parameter that the analysis needs is missing."),
    Reason.PARAMETER_INVALID: Entry(_INVALID, "A parameter's value is not valid."),
    Reason.QUORUM_INVALID: Entry(_INVALID, "The quorum must be between 1 and the number of nodes."),
    Reason.DEADLINE_INVALID: Entry(_INVALID, "The deadline must lie in the future, at most 366 days away."),
    Reason.SNAPSHOT_CHANGED: Entry(_STATE, "The dataset has a new snapshot; submit the job again."),
    Reason.ENVELOPE_INVALID: Entry(_INVALID, "The signed job is not valid."),
    Reason.IDEMPOTENCY_MISMATCH: Entry(_EXISTS, "This id was used with other content."),
    Reason.JOB_UNKNOWN: Entry(_C.NOT_FOUND, "There is no such job."),
    Reason.JOB_NOT_ENDED: Entry(_STATE, "The job has not ended yet."),
    Reason.JOB_ENDED: Entry(_STATE, "The job has already ended."),
    Reason.RESULT_PURGED: Entry(_C.NOT_FOUND, "The result was kept for its time, and is deleted."),
    Reason.PERSON_EXISTS: Entry(_EXISTS, "This name is registered with another key or role."),
    Reason.PERSON_INVALID: Entry(_INVALID, "The person's name or role is not valid."),
    Reason.NODE_UNKNOWN: Entry(_C.NOT_FOUND, "There is no such node."),
    Reason.NODE_EXISTS: Entry(_EXISTS, "There is a node of this name already."),
    Reason.NODE_INVALID: Entry(_INVALID, "A node's name is 1 to 32 of A-Z, 0-9 and '-'."),
    Reason.NODE_STATE_CONFLICT: Entry(_STATE, "The node's state does not allow this."),
    Reason.NODE_MISMATCH: Entry(_C.PERMISSION_DENIED, "The certificate is another node's."),
    Reason.NODE_NOT_CONFIRMED: Entry(_STATE, "An operator has not confirmed this node yet."),
    Reason.NODE_SUSPENDED: Entry(_C.PERMISSION_DENIED, "This node is suspended."),
    Reason.NODE_QUARANTINED: Entry(_C.PERMISSION_DENIED, "This node is quarantined."),
    Reason.NODE_REVOKED: Entry(_C.PERMISSION_DENIED, "This node's membership was revoked."),
    Reason.CERTIFICATE_REFUSED: Entry(_C.UNAUTHENTICATED, "The certificate is not valid here."),
    Reason.ENROLMENT_REFUSED: Entry(
        _C.PERMISSION_DENIED, "The token is unknown, expired, or was used with another key."
    ),
    Reason.FINGERPRINT_MISMATCH: Entry(_STATE, "The fingerprint is not that of the enrolled key."),
    Reason.PROTOCOL_VIOLATION: Entry(_STATE, "The frame does not fit here."),
    Reason.VERSION_UNSUPPORTED: Entry(_STATE, "This protocol version is not spoken here."),
    Reason.EPOCH_FENCED: Entry(_C.ABORTED, "A newer session of this node has taken over."),
    Reason.SUMMARY_CONFLICT: Entry(_EXISTS, "Another summary was stored for this run."),
    Reason.SUMMARY_CORRUPT: Entry(_C.DATA_LOSS, "The uploaded bytes are not what was announced."),
    Reason.RUN_UNKNOWN: Entry(_C.NOT_FOUND, "There is no such run."),
    Reason.COORDINATOR_BEHIND: Entry(
        _C.DATA_LOSS,
        "The coordinator has forgotten what this node has received; its operator has to restore its store.",
    ),
    Reason.NODE_NOT_RECONCILED: Entry(
        _STATE, "This node's store was restored from a backup; two federation operators have to reconcile it first."
    ),
    Reason.AGENT_RUNNING: Entry(_STATE, "Another agent uses this state folder."),
    Reason.AGENT_UNREACHABLE: Entry(_C.UNAVAILABLE, "The agent does not run; start it with `hansa-node run`."),
    Reason.STATE_FOLDER_INVALID: Entry(_STATE, "The state folder cannot be used."),
    Reason.POLICY_INVALID: Entry(_INVALID, "The policy file is not valid."),
    Reason.DATASET_EXISTS: Entry(_EXISTS, "There is a dataset of this id already."),
    Reason.DATASET_INVALID: Entry(_INVALID, "The dataset is not valid."),
    Reason.DATASET_IN_USE: Entry(_STATE, "A run that has not ended uses this dataset."),
    Reason.VCF_UNREADABLE: Entry(_INVALID, "The file cannot be read as a VCF."),
    Reason.VCF_TRUNCATED: Entry(_INVALID, "The VCF is truncated; fetch it again."),
    Reason.VCF_NOT_INDEXED: Entry(_INVALID, "The VCF has no index; make one with `tabix -p vcf`."),
    Reason.VCF_RECORD_INVALID: Entry(_INVALID, "The VCF holds a record that cannot be used."),
    Reason.VCF_RECORD_DUPLICATE: Entry(_INVALID, "The VCF holds one variant twice."),
    Reason.VCF_SAMPLE_DUPLICATE: Entry(_INVALID, "The VCF names one sample twice."),
    Reason.VCF_CONTIG_UNSUPPORTED: Entry(_INVALID, "Only autosomes (1 to 22) are supported."),
    Reason.BUILD_UNKNOWN: Entry(_INVALID, "The VCF's contigs do not tell its build; pass --build."),
    Reason.SAMPLES_INVALID: Entry(_INVALID, "The samples file is not valid."),
    Reason.SAMPLES_MISMATCH: Entry(_INVALID, "The samples file and the VCF do not name the same people."),
    Reason.EXECUTION_SUPERSEDED: Entry(_C.ABORTED, "A newer execution of this run has started, or it has ended."),
    Reason.RELEASE_CONFLICT: Entry(_STATE, "The run does not wait for a release decision."),
    Reason.DIRECTORY_INVALID: Entry(_INVALID, "The directory is not valid."),
    Reason.DIRECTORY_CHANGED: Entry(_STATE, "Another version of the directory is in force; submit the job again."),
    Reason.PROJECT_NOT_ADMITTED: Entry(_C.PERMISSION_DENIED, "The project does not allow this job."),
    Reason.TRUST_INVALID: Entry(_STATE, "The trust repository's metadata is not valid."),
    Reason.TRUST_EXPIRED: Entry(_STATE, "The trust repository's metadata has expired; its signers have to renew it."),
    Reason.TRUST_ROLLBACK: Entry(_STATE, "This is older than the trust repository that is known here."),
    Reason.TRUST_UNKNOWN: Entry(_C.NOT_FOUND, "The trust repository has no such file."),
    Reason.TRUST_THRESHOLD: Entry(_STATE, "Too few keys have signed; see `hansa trust status`."),
    Reason.VOTE_INVALID: Entry(_INVALID, "The vote is not valid."),
    Reason.APPROVAL_INVALID: Entry(_INVALID, "The approval is not valid."),
    Reason.APPROVAL_UNKNOWN: Entry(_C.NOT_FOUND, "There is no such approval; see `hansa-node approval list`."),
    Reason.APPROVAL_CONFLICT: Entry(_STATE, "The run does not wait for an approval."),
    Reason.SELF_APPROVAL: Entry(_C.PERMISSION_DENIED, "Nobody approves or releases for their own job."),
    Reason.DECISION_INVALID: Entry(_INVALID, "The signed decision is not valid."),
    Reason.STATEMENT_INVALID: Entry(_C.UNAUTHENTICATED, "The release statement is not valid."),
    Reason.SEALED_INVALID: Entry(_C.DATA_LOSS, "The sealed summary cannot be opened with this key."),
    Reason.PENDING_SECOND: Entry(_STATE, "A second federation operator has to ask for the same."),
    Reason.PROPOSAL_UNKNOWN: Entry(_C.NOT_FOUND, "There is no such proposal."),
    Reason.LOG_FORKED: Entry(_C.DATA_LOSS, "The audit log does not continue what was seen of it."),
    Reason.LOG_ENTRY_UNKNOWN: Entry(_C.NOT_FOUND, "The audit log has no such entry."),
    Reason.NOTE_INVALID: Entry(_C.DATA_LOSS, "The signed checkpoint is not valid."),
    Reason.EVIDENCE_INVALID: Entry(_C.DATA_LOSS, "The evidence does not hold."),
    Reason.STORE_DAMAGED: Entry(_C.DATA_LOSS, "The store is damaged."),
    Reason.STORE_IN_USE: Entry(_STATE, "Another process uses this store; stop it first."),
    Reason.STORE_FENCED: Entry(_C.ABORTED, "Another coordinator has taken this store over."),
    Reason.STORE_FULL: Entry(_C.RESOURCE_EXHAUSTED, "There is no room on the disk for new work; try again later."),
    Reason.BACKUP_INVALID: Entry(_C.DATA_LOSS, "The backup is not valid."),
}


class HansaError(Exception):
    """A refusal with a public meaning.

    ``public`` and ``reason`` are for the caller and never carry data of a
    dataset; ``str(error)`` adds ``log``, which stays in our own log.
    """

    def __init__(self, reason: Reason, public: str = "", *, field: str = "", log: str = "") -> None:
        """Make the error.

        Args:
            reason: the stable cause.
            public: words for the caller, where the catalogue's do not suffice.
            field: the name of the input field at fault, if there is one.
            log: what only our own log may say.
        """
        self.reason = reason
        self.public = public or CATALOGUE[reason].public
        self.field = field
        super().__init__(f"{reason}: {self.public} {log}".strip())

    @property
    def code(self) -> Code:
        """The gRPC code of the reason."""
        return CATALOGUE[self.reason].code
