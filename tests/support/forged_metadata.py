"""Trust metadata as a breached coordinator can forge it: with the keys of snapshot and timestamp, and no other."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.formats import encode_canonical

from hansa.trust.signing import file_signer
from tests.support.trust_world import TrustWorld

_STOLEN = ("snapshot", "timestamp", "_coordinator")


@dataclass(frozen=True, slots=True)
class Forger:
    """Signs what it likes with what it has. Works on the files of a mirror, by name, in place."""

    world: TrustWorld

    def signed(self, body: Any, *by: str) -> bytes:
        """Return ``body`` as metadata with signatures of stolen keys."""
        assert set(by) <= set(_STOLEN)
        keys = [self.world.keys[name] for name in by]
        signatures = [{"keyid": keyid(key), "sig": key.sign(_canonical(body)).hex()} for key in keys]
        return json.dumps({"signatures": signatures, "signed": body}).encode()

    def put_targets(self, files: dict[str, bytes], data: bytes, version: int) -> None:
        """Put any targets metadata into the mirror and in force, as far as the on-line keys reach."""
        files[f"metadata/{version}.targets.json"] = data
        self.put_snapshot(files, self._snapshot(files, data, version))

    def put_snapshot(self, files: dict[str, bytes], body: Any) -> None:
        """Sign a snapshot, and a timestamp that puts it in force."""
        data = self.signed(body, "snapshot")
        number = body.get("version") if isinstance(body, dict) else None
        version = number if isinstance(number, int) and not isinstance(number, bool) and number > 0 else 1
        files[f"metadata/{version}.snapshot.json"] = data
        self.put_timestamp(files, data, version)

    def put_timestamp(self, files: dict[str, bytes], snapshot: bytes, version: int) -> None:
        old = json.loads(files["metadata/timestamp.json"])["signed"]
        meta = {"version": version, "length": len(snapshot), "hashes": {"sha256": hashlib.sha256(snapshot).hexdigest()}}
        body = {**old, "version": old["version"] + 1, "meta": {"snapshot.json": meta}}
        files["metadata/timestamp.json"] = self.signed(body, "timestamp")

    def keep_alive(self, files: dict[str, bytes], now: datetime) -> None:
        """Sign both on-line roles anew, over the targets that the mirror has: a freeze that never ends."""
        name = max((n for n in files if n.endswith(".snapshot.json")), key=_version)
        body = json.loads(files[name])["signed"]
        self.put_snapshot(files, {**body, "version": body["version"] + 1, "expires": _text(now + timedelta(days=7))})
        body = json.loads(files["metadata/timestamp.json"])["signed"]
        body = {**body, "version": body["version"] + 1, "expires": _text(now + timedelta(days=1))}
        files["metadata/timestamp.json"] = self.signed(body, "timestamp")

    def _snapshot(self, files: dict[str, bytes], targets: bytes, version: int) -> Any:
        name = max((n for n in files if n.endswith(".snapshot.json")), key=_version)
        body = json.loads(files[name])["signed"]
        meta = {"version": version, "length": len(targets), "hashes": {"sha256": hashlib.sha256(targets).hexdigest()}}
        return {**body, "version": body["version"] + 1, "meta": {"targets.json": meta}}


def keyid(key: Ed25519PrivateKey) -> str:
    return file_signer(key).public_key.keyid


def _version(name: str) -> int:
    return int(name.removeprefix("metadata/").split(".")[0])


def _text(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


def _canonical(body: Any) -> bytes:
    try:
        return str(encode_canonical(body)).encode()
    except Exception:  # what canonical JSON cannot write, such as a fraction
        return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
