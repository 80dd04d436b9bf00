"""The wire between the sandboxed Snakemake and the runner: JSON, one value a line.

Both ends use this module. The runner's end trusts nothing that it reads: a
request is bounded in size and number, and a malformed one ends the run.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Final

MAX_REQUEST_BYTES: Final = 1 << 20
MAX_RULES: Final = 100_000
_MAX_NAME: Final = 256
_FIELDS: Final = {"number": int, "rule": str, "threads": int, "command": str, "outputs": list}


class ChannelError(ValueError):
    """The other side sent what is no request."""


@dataclass(frozen=True, slots=True)
class RuleRequest:
    """One rule's job that shall run.

    ``number`` counts from 1 within the run, without gaps. ``outputs`` are the
    files that the rule is to leave, by path in the scratch folder.
    """

    number: int
    rule: str
    threads: int
    command: str
    outputs: list[str] = field(default_factory=list)


def parse_request(line: bytes, expected_number: int) -> RuleRequest:
    """Return the request in ``line``.

    Raises:
        ChannelError: it is none, or not the one that comes next.
    """
    try:
        raw = json.loads(line)
        request = RuleRequest(**raw)
    except (ValueError, TypeError, RecursionError) as error:
        raise ChannelError("not a request") from error
    if (
        {key: type(value) for key, value in raw.items()} != _FIELDS
        or request.number != expected_number
        or expected_number > MAX_RULES
    ):
        raise ChannelError("a request out of order")
    if not all(isinstance(path, str) for path in request.outputs):
        raise ChannelError("an output without a path")
    if len(request.rule) > _MAX_NAME or request.threads < 1 or "\0" in request.command:
        raise ChannelError("a request out of bounds")
    return request


def answer_line(number: int, code: int) -> bytes:
    """Return the line that tells the sandbox how job ``number`` ended."""
    return json.dumps({"number": number, "code": code}).encode() + b"\n"


class Channel:
    """The sandbox's end of the wire."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._lock = threading.Lock()

    def send_request(self, request: RuleRequest) -> None:
        """Send ``request``. Callable from any thread.

        Raises:
            ChannelError: the command is longer than the runner takes.
        """
        line = json.dumps(asdict(request)).encode() + b"\n"
        if len(line) > MAX_REQUEST_BYTES:
            raise ChannelError(f"the command of rule {request.rule} is over {MAX_REQUEST_BYTES} bytes")
        with self._lock:
            self._socket.sendall(line)

    def answers(self) -> Iterator[tuple[int, int]]:
        """Yield (number, exit status) as jobs end, until the runner hangs up."""
        with self._socket.makefile("rb") as lines:
            for line in lines:
                answer = json.loads(line)
                yield answer["number"], answer["code"]
