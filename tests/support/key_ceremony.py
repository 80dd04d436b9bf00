"""The key ceremony by public commands: one key folder, one working folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from hansa.cli.main import cli
from hansa.contract.digests import canonical, digest
from hansa.contract.raw_keys import key_text
from hansa.sdk.keys import load_private_key
from hansa.trust.files import read_files
from hansa.trust.online import OnlineKeys, renew_online
from hansa.trust.repository import verify_repository
from hansa.trust.view import TrustView
from tests.support.trust_world import GOOD_ANALYSIS

PEOPLE = {
    "ada": ("uni", ["researcher"]),
    "author": ("uni", ["researcher"]),
    "rev1": ("org-a", ["reviewer"]),
    "rev2": ("org-b", ["reviewer"]),
    "op1": ("org-a", ["federation-operator"]),
}


class Ceremony:
    """A folder of keys and a working folder, used through ``hansa``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.repo = folder / "repo"
        self.keys = folder / "keys"
        self.keys.mkdir(parents=True)

    def hansa(self, *arguments: object) -> dict[str, Any]:
        found = self.outcome(*arguments)
        assert found[0] == 0, found[2]
        document = json.loads(found[1])
        assert isinstance(document, dict)
        return document

    def outcome(self, *arguments: object) -> tuple[int, str, str]:
        words = [*(str(argument) for argument in arguments), "--output", "json"]
        result = CliRunner().invoke(cli, words, env={"HANSA_PROFILE": "/nowhere/profile.toml"})
        return result.exit_code, result.stdout, result.stderr

    def refusal(self, *arguments: object) -> str:
        code, out, err = self.outcome(*arguments)
        assert (code, out) == (2, ""), err
        return str(json.loads(err)["error"]["reason"])

    def key(self, name: str, *options: str) -> Path:
        path = self.keys / name
        if not path.exists():
            self.hansa("key", "create", path, *options)
        return path

    def public(self, name: str) -> str:
        return f"{self.key(name)}.pub"

    def init(self) -> dict[str, Any]:
        roots = [word for n in (1, 2, 3) for word in ("--root-key", self.public(f"root{n}"))]
        targets = [word for n in (1, 2, 3) for word in ("--targets-key", self.public(f"targets{n}"))]
        online = ["--snapshot-key", self.public("snapshot"), "--timestamp-key", self.public("timestamp")]
        thresholds = ["--root-threshold", 2, "--targets-threshold", 2, "--log-key", self.public("log")]
        return self.hansa("trust", "init", self.repo, "--federation", "demo", *roots, *targets, *online, *thresholds)

    def add_people(self, people: Mapping[str, tuple[str, list[str]]] = PEOPLE) -> None:
        for name, (organisation, roles) in people.items():
            given = [word for role in roles for word in ("--role", role)]
            self.hansa(
                "trust",
                "add-person",
                self.repo,
                name,
                "--organisation",
                organisation,
                "--key",
                self.public(name),
                *given,
            )

    def add_node(self, node: str) -> None:
        card = {
            "v": 1,
            "node": node,
            "signing_key": key_text(Ed25519PrivateKey.generate().public_key()),
            "agreement_key": key_text(X25519PrivateKey.generate().public_key()),
            "tls_fingerprint": digest(b"tls"),
        }
        path = self.folder / f"{node}.card"
        path.write_text(json.dumps({**card, "fingerprint": digest(canonical(card))}))
        self.hansa("trust", "add-node", self.repo, "--card", path, "--organisation", "biobank")

    def bundle(self, *reviewers: str, analysis: Path = GOOD_ANALYSIS) -> Path:
        target = self.folder / "bundle"
        self.hansa("analysis", "build", analysis, "--person", "author", "--key", self.key("author"), "--to", target)
        for name in reviewers:
            self.hansa("analysis", "review", target, "--person", name, "--key", self.key(name), "--approve")
        return target

    def sign(self, *names: str) -> dict[str, Any]:
        for name in names:
            last = self.hansa("trust", "sign", self.repo, "--key", self.key(name))
        return last

    def view(self) -> TrustView:
        now = datetime.now(UTC)
        online = OnlineKeys(load_private_key(self.key("snapshot")), load_private_key(self.key("timestamp")))
        files = renew_online(read_files(self.repo), online, now)
        root = (self.repo / "metadata" / "1.root.json").read_bytes()
        return verify_repository(files, trusted_root=root, now=now)
