"""The names of things, and the one shape each may have.

Ids are ASCII only and are checked where they enter, so that no later stage has
to ask whether one holds a path, a newline or a terminal escape.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final, NewType

from hansa.contract.errors import HansaError, Reason

JobId = NewType("JobId", str)
RunId = NewType("RunId", str)
NodeId = NewType("NodeId", str)
DatasetId = NewType("DatasetId", str)

NODE_ID: Final = re.compile(r"[A-Z0-9][A-Z0-9-]{0,31}")
DATASET_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
PERSON_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
ANALYSIS_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
ANALYSIS_VERSION: Final = re.compile(r"[0-9]{1,4}(\.[0-9]{1,4}){1,2}")
PROJECT_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
ORGANISATION: Final = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}")
FEDERATION_NAME: Final = re.compile(r"[a-z0-9][a-z0-9.-]{0,62}")
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_RUN_ID: Final = re.compile(r"[0-9a-f]{32}")


def job_id(text: str) -> JobId:
    """Return ``text`` as a job id: a UUID in lower-case canonical form.

    Raises:
        HansaError: ``JOB_UNKNOWN``; a name that cannot be a job's is answered
            like the name of a job that is not there.
    """
    if not _UUID.fullmatch(text):
        raise HansaError(Reason.JOB_UNKNOWN)
    return JobId(text)


def is_job_id(text: str) -> bool:
    """Say whether ``text`` has the shape of a job id."""
    return _UUID.fullmatch(text) is not None


def run_id(job: str, node: str, round_: int) -> RunId:
    """Return the id of ``job``'s run at ``node`` in ``round_``.

    Derived, so that coordinator and node name the run alike and an offer that
    is sent twice is the same run twice: the first 128 bits of
    SHA-256("hansa-run-v1|job|node|round").
    """
    digest = hashlib.sha256(f"hansa-run-v1|{job}|{node}|{round_}".encode()).hexdigest()
    return RunId(digest[:32])


def is_run_id(text: str) -> bool:
    """Say whether ``text`` has the shape of a run id."""
    return _RUN_ID.fullmatch(text) is not None
