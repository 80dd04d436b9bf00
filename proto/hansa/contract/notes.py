"""Checkpoints of audit logs as signed notes, and the cosignatures of their witnesses.

The formats are C2SP's: signed-note, tlog-checkpoint and tlog-cosignature (v1),
all with Ed25519. A key is named in a note by its log's origin, so that a line
says by itself whose it is: ``<federation>/coordinator`` and
``<federation>/node/<ID>``. A log signs with the key with which it cosigns
others: the signed texts can never be the same, for a cosignature's begins with
``cosignature/v1`` and a newline, which is no origin.

What can be read in two ways is refused: one form per note.
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from hansa.contract.errors import HansaError, Reason
from hansa.contract.ids import FEDERATION_NAME, NODE_ID

NOTE_BYTES: Final = 32 << 10
# Of a proof between two sizes of 63 bits.
MOST_HASHES: Final = 65
MOST_LEAVES: Final = (1 << 63) - 1

_SIGNATURE: Final = 0x01
_COSIGNATURE: Final = 0x04
_MOST_LINES: Final = 128
_HASH_BYTES: Final = 32
_SIGNATURE_BYTES: Final = 64
_KEY_HASH_BYTES: Final = 4
_TIME_BYTES: Final = 8
_NAME: Final = rf"{FEDERATION_NAME.pattern}/(?:coordinator|node/{NODE_ID.pattern})"
_LINE: Final = re.compile(rf"— (?P<name>{_NAME}) (?P<data>[A-Za-z0-9+/=]{{1,400}})")
_BODY: Final = re.compile(rf"(?P<origin>{_NAME})\n(?P<size>0|[1-9][0-9]{{0,18}})\n(?P<root>[A-Za-z0-9+/]{{43}}=)\n")


def coordinator_origin(federation: str) -> str:
    """Return the origin of the coordinator's log, which is the name of its key too."""
    return f"{federation}/coordinator"


def node_origin(federation: str, node: str) -> str:
    """Return the origin of a node's log, which is the name of its key too."""
    return f"{federation}/node/{node}"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where a log stands: ``root`` is over its first ``size`` entries."""

    origin: str
    size: int
    root: bytes

    def body(self) -> bytes:
        """Return the text that is signed."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n".encode()


@dataclass(frozen=True, slots=True)
class Line:
    """A line of signature: who, by which key (four bytes of a hash), and what."""

    name: str
    key_hash: bytes
    signature: bytes

    def to_bytes(self) -> bytes:
        """Return the line, with its newline."""
        data = base64.b64encode(self.key_hash + self.signature).decode()
        return f"— {self.name} {data}\n".encode()


@dataclass(frozen=True, slots=True)
class Note:
    """A checkpoint with its lines. Nothing of it has been verified."""

    checkpoint: Checkpoint
    lines: tuple[Line, ...]

    def to_bytes(self) -> bytes:
        """Return the note as it is stored and sent."""
        return self.checkpoint.body() + b"\n" + b"".join(line.to_bytes() for line in self.lines)

    def plus(self, *lines: Line) -> Note:
        """Return the note with more lines."""
        return Note(self.checkpoint, (*self.lines, *lines))


def parse_note(data: bytes) -> Note:
    """Return the note in ``data``, which has at least one line of signature.

    Raises:
        HansaError: ``NOTE_INVALID``.
    """
    if len(data) > NOTE_BYTES:
        raise _invalid(f"A note has at most {NOTE_BYTES} bytes.")
    body, blank, rest = data.partition(b"\n\n")
    lines = rest.split(b"\n")
    if not blank or lines[-1] or not 1 < len(lines) <= _MOST_LINES:
        raise _invalid()
    note = Note(_checkpoint(body + b"\n"), tuple(parse_line(line + b"\n") for line in lines[:-1]))
    if len({(line.name, line.key_hash) for line in note.lines}) != len(note.lines):
        raise _invalid("A key has signed the note twice.")
    return note


def parse_line(data: bytes) -> Line:
    """Return the line of signature in ``data``, which ends with a newline.

    Raises:
        HansaError: ``NOTE_INVALID``.
    """
    match = _LINE.fullmatch(_text(data.removesuffix(b"\n")))
    if match is None or not data.endswith(b"\n"):
        raise _invalid()
    decoded = _decoded(match["data"])
    if len(decoded) not in (_KEY_HASH_BYTES + _SIGNATURE_BYTES, _KEY_HASH_BYTES + _TIME_BYTES + _SIGNATURE_BYTES):
        raise _invalid()
    return Line(match["name"], decoded[:_KEY_HASH_BYTES], decoded[_KEY_HASH_BYTES:])


def check_proof(hashes: tuple[bytes, ...]) -> None:
    """Return if ``hashes`` may be a proof: not too many, each of the right length.

    Raises:
        HansaError: ``NOTE_INVALID``.
    """
    if len(hashes) > MOST_HASHES or any(len(one) != _HASH_BYTES for one in hashes):
        raise _invalid("A proof is at most 65 hashes of 32 bytes.")


def sign_checkpoint(checkpoint: Checkpoint, key: Ed25519PrivateKey) -> Note:
    """Return the note of a log about itself."""
    signature = key.sign(checkpoint.body())
    return Note(
        checkpoint, (Line(checkpoint.origin, _hash(checkpoint.origin, _SIGNATURE, key.public_key()), signature),)
    )


def open_checkpoint(data: bytes, *, origin: str, key: Ed25519PublicKey) -> Note:
    """Return the note in ``data``, once its log's own signature is verified.

    Other lines are not looked at.

    Args:
        data: the note.
        origin: whose log it must be.
        key: that log's key, by the directory.

    Raises:
        HansaError: ``NOTE_INVALID``.
    """
    note = parse_note(data)
    if note.checkpoint.origin != origin:
        raise _invalid("The note is of another log.")
    wanted = _hash(origin, _SIGNATURE, key)
    line = next((line for line in note.lines if (line.name, line.key_hash) == (origin, wanted)), None)
    if line is None or not _verified(key, line.signature, note.checkpoint.body()):
        raise _invalid("The log has not signed the note.")
    return note


def cosign(checkpoint: Checkpoint, *, name: str, key: Ed25519PrivateKey, seconds: int) -> Line:
    """Return a witness' cosignature: no other tree of this size was seen by then.

    Args:
        checkpoint: what the witness has verified and stored.
        name: the witness' own origin.
        key: the witness' key.
        seconds: the time, in seconds since 1970.
    """
    signature = key.sign(_cosigned(checkpoint, seconds))
    key_hash = _hash(name, _COSIGNATURE, key.public_key())
    return Line(name, key_hash, seconds.to_bytes(_TIME_BYTES, "big") + signature)


def cosigned_at(checkpoint: Checkpoint, line: Line, *, name: str, key: Ed25519PublicKey) -> int | None:
    """Return when (seconds since 1970) the witness cosigned; None if ``line`` is not its cosignature."""
    if (line.name, line.key_hash) != (name, _hash(name, _COSIGNATURE, key)):
        return None
    seconds = int.from_bytes(line.signature[:_TIME_BYTES], "big")
    return seconds if _verified(key, line.signature[_TIME_BYTES:], _cosigned(checkpoint, seconds)) else None


def _cosigned(checkpoint: Checkpoint, seconds: int) -> bytes:
    return f"cosignature/v1\ntime {seconds}\n".encode() + checkpoint.body()


def _hash(name: str, kind: int, key: Ed25519PublicKey) -> bytes:
    return hashlib.sha256(name.encode() + b"\n" + bytes([kind]) + key.public_bytes_raw()).digest()[:_KEY_HASH_BYTES]


def _verified(key: Ed25519PublicKey, signature: bytes, text: bytes) -> bool:
    try:
        key.verify(signature, text)
    except InvalidSignature:
        return False
    return True


def _checkpoint(body: bytes) -> Checkpoint:
    match = _BODY.fullmatch(_text(body))
    if match is None or int(match["size"]) > MOST_LEAVES:
        raise _invalid()
    return Checkpoint(match["origin"], int(match["size"]), _decoded(match["root"]))


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _invalid() from error


def _decoded(text: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise _invalid() from error
    if base64.b64encode(data).decode() != text:
        # Bits that nothing needs would give one note two forms.
        raise _invalid()
    return data


def _invalid(words: str = "") -> HansaError:
    return HansaError(Reason.NOTE_INVALID, words, field="checkpoint")
