"""A federation's trust, whole and in memory: people, nodes, keys, a project, an analysis with votes, signed metadata."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from hansa.contract.directory import (
    COORDINATOR,
    Directory,
    DirectoryNode,
    DirectoryPerson,
    DirectoryProject,
    Role,
    directory_bytes,
)
from hansa.contract.job import AnalysisRef
from hansa.contract.raw_keys import key_text
from hansa.contract.trust_paths import DIRECTORY
from hansa.sdk.bundle import read_bundle
from hansa.trust.bundles import SignedBundle, ref_of, sign_authorship, sign_vote
from hansa.trust.files import ROOT, TARGETS, RepositoryFiles, metadata_name
from hansa.trust.online import OnlineKeys, renew_online
from hansa.trust.repository import verify_repository
from hansa.trust.signing import RootPlan, add_signature, file_signer, metadata_bytes, new_root, new_targets, role_key
from hansa.trust.view import TrustView

START: Final = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)
FEDERATION: Final = "demo"
PROJECT: Final = "lactose"
GOOD_ANALYSIS: Final = Path(__file__).parent / "good_analysis"
DATASETS: Final = {"FI": "FI-aisnp", "ES": "ES-aisnp", "IT": "IT-aisnp"}

# name -> organisation, roles; who has none of a node.
PEOPLE: Final[Mapping[str, tuple[str, tuple[Role, ...]]]] = {
    "ada": ("uni-a", (Role.RESEARCHER,)),
    "bob": ("uni-b", (Role.RESEARCHER,)),
    "author": ("uni-a", (Role.RESEARCHER,)),
    "rev1": ("org-a", (Role.REVIEWER,)),
    "rev2": ("org-b", (Role.REVIEWER,)),
    "rev3": ("org-a", (Role.REVIEWER,)),
    "op1": ("org-a", (Role.FEDERATION_OPERATOR,)),
    "op2": ("org-b", (Role.FEDERATION_OPERATOR,)),
    "aud": ("org-c", (Role.AUDITOR,)),
}


@dataclass
class TrustWorld:
    """Change ``directory`` or ``bundles`` and ``publish``; ``files`` and ``view`` are then the new ones.

    ``keys`` has private signing keys by name: people, nodes (``FI``),
    ``_coordinator``, ``root1`` to ``root3``, ``targets1`` to ``targets3``,
    ``snapshot``, ``timestamp``. ``recipients`` has X25519 keys of researchers
    and nodes. At each node N (lower case) there are ``holder-n``,
    ``checker-n``, ``checker2-n`` and ``operator-n``.
    """

    directory: Directory
    bundles: list[SignedBundle]
    keys: dict[str, Ed25519PrivateKey]
    recipients: dict[str, X25519PrivateKey]
    now: datetime
    root: bytes = b""
    files: RepositoryFiles = field(default_factory=RepositoryFiles)
    signers: Mapping[str, Sequence[str]] = field(
        default_factory=lambda: {ROOT: ("root1", "root2"), TARGETS: ("targets1", "targets2")}
    )

    @property
    def online(self) -> OnlineKeys:
        return OnlineKeys(self.keys["snapshot"], self.keys["timestamp"])

    @property
    def view(self) -> TrustView:
        """What the files say at ``now``, verified from the first root."""
        return verify_repository(self.files, trusted_root=self.root, now=self.now)

    @property
    def analysis(self) -> AnalysisRef:
        """The first bundle."""
        return self.bundles[0].ref

    def publish(self) -> RepositoryFiles:
        """Sign a new version of the targets with what the world holds now, and put it in force."""
        contents = {DIRECTORY: directory_bytes(self.directory)}
        for bundle in self.bundles:
            contents |= bundle.targets()
        metadata = new_targets(contents, version=self.files.newest(TARGETS) + 1, expires=self.now + timedelta(days=180))
        for name in self.signers[TARGETS]:
            add_signature(metadata, file_signer(self.keys[name]))
        name = metadata_name(TARGETS, metadata.signed.version)
        self.files = renew_online(self.files.merged({name: metadata_bytes(metadata)}, contents), self.online, self.now)
        return self.files

    def change(self, **fields: Any) -> Directory:
        """Replace fields of the directory, give it the next version, and publish."""
        return self.change_directory(lambda directory: directory.model_copy(update=fields))

    def change_directory(self, change: Callable[[Directory], Directory]) -> Directory:
        """Let ``change`` make the next directory, give it the next version, and publish."""
        changed = change(self.directory).model_copy(update={"version": self.directory.version + 1})
        self.directory = Directory.model_validate(changed.model_dump())
        self.publish()
        return self.directory

    def renew(self, now: datetime) -> RepositoryFiles:
        """Let the coordinator sign a new timestamp at ``now``."""
        self.now = now
        self.files = renew_online(self.files, self.online, now)
        return self.files

    def plan(self, **changes: Any) -> RootPlan:
        """Return the plan of the root: two of three for root and targets."""
        return RootPlan(
            **{
                "root_keys": [self.public(f"root{n}") for n in (1, 2, 3)],
                "root_threshold": 2,
                "targets_keys": [self.public(f"targets{n}") for n in (1, 2, 3)],
                "targets_threshold": 2,
                "snapshot_key": self.public("snapshot"),
                "timestamp_key": self.public("timestamp"),
                **changes,
            }
        )

    def public(self, name: str) -> Any:
        """Return the public key ``name`` for a role; a new one is made where there is none."""
        key = self.keys.setdefault(name, Ed25519PrivateKey.generate())
        return role_key(key.public_key(), name)

    def publish_root(self, plan: RootPlan, signers: Sequence[str]) -> bytes:
        """Put the next root in force, with just these signatures."""
        metadata = new_root(plan, version=self.files.newest(ROOT) + 1, now=self.now)
        for name in signers:
            add_signature(metadata, file_signer(self.keys[name]))
        data = metadata_bytes(metadata)
        self.files = self.files.merged({metadata_name(ROOT, metadata.signed.version): data}, {})
        return data

    def vote(self, bundle: SignedBundle, *reviewers: str, verdict: str = "approve") -> SignedBundle:
        """Return ``bundle`` with votes of ``reviewers``."""
        made = {
            name: sign_vote(bundle.ref, {"reviewer": name, "verdict": verdict}, self.keys[name], self.now)
            for name in reviewers
        }
        return SignedBundle(bundle.files, bundle.authorship, {**bundle.votes, **made})

    def bundle(self, files: Mapping[str, bytes], *, author: str = "author") -> SignedBundle:
        """Return ``files`` signed by their author, with no votes."""
        return SignedBundle(files, sign_authorship(ref_of(files), author, self.keys[author], self.now))


def build_trust_world(
    analysis: Path | Mapping[str, bytes] = GOOD_ANALYSIS,
    *,
    datasets: Mapping[str, str] | None = None,
    now: datetime = START,
    federation: str = FEDERATION,
    keys: Mapping[str, Ed25519PrivateKey] | None = None,
) -> TrustWorld:
    """Return a world with one project that allows ``analysis`` on ``datasets`` (id by node).

    Args:
        analysis: a folder, or the files; it gets an author and the approval of rev1 and rev2.
        datasets: one per node of the federation.
        now: when everything is signed.
        federation: its name.
        keys: private keys that exist already, by the names of ``TrustWorld.keys``.
    """
    places = DATASETS if datasets is None else datasets
    world = TrustWorld(_empty(federation), [], dict(keys or {}), {}, now)
    for name in (*(f"root{n}" for n in (1, 2, 3)), *(f"targets{n}" for n in (1, 2, 3)), "snapshot", "timestamp"):
        world.public(name)
    people = [_person(world, name, organisation, roles) for name, (organisation, roles) in PEOPLE.items()]
    for node in places:
        people += _staff(world, node)
    files = read_bundle(analysis) if isinstance(analysis, Path) else analysis
    world.bundles = [world.vote(world.bundle(files), "rev1", "rev2")]
    world.directory = Directory(
        federation=federation,
        version=1,
        coordinator_log_key=_text(world, COORDINATOR),
        people=tuple(people),
        nodes=tuple(_node(world, node) for node in places),
        projects=(
            DirectoryProject(
                project=PROJECT,
                researchers=("ada", "bob"),
                datasets=tuple(f"{node}/{dataset}" for node, dataset in places.items()),
                analyses=(f"{world.analysis.name}@{world.analysis.version}",),
                valid_until=now + timedelta(days=365),
            ),
        ),
        witnesses=tuple(places),
    )
    world.root = world.publish_root(world.plan(), world.signers[ROOT])
    world.publish()
    return world


def _empty(federation: str) -> Directory:
    key = key_text(Ed25519PrivateKey.generate().public_key())
    return Directory(federation=federation, version=1, coordinator_log_key=key)


def _text(world: TrustWorld, name: str) -> str:
    return key_text(world.keys.setdefault(name, Ed25519PrivateKey.generate()).public_key())


def _recipient(world: TrustWorld, name: str) -> str:
    return key_text(world.recipients.setdefault(name, X25519PrivateKey.generate()).public_key())


def _person(
    world: TrustWorld, name: str, organisation: str, roles: Sequence[Role], nodes: Sequence[str] = ()
) -> DirectoryPerson:
    return DirectoryPerson(
        name=name,
        organisation=organisation,
        signing_key=_text(world, name),
        recipient_key=_recipient(world, name) if Role.RESEARCHER in roles else None,
        roles=tuple(roles),
        nodes=tuple(nodes),
    )


def _staff(world: TrustWorld, node: str) -> list[DirectoryPerson]:
    lower = node.lower()
    return [
        _person(world, f"holder-{lower}", f"biobank-{lower}", [Role.DATA_HOLDER], [node]),
        _person(world, f"checker-{lower}", f"biobank-{lower}", [Role.OUTPUT_CHECKER], [node]),
        _person(world, f"checker2-{lower}", f"biobank-{lower}", [Role.OUTPUT_CHECKER], [node]),
        _person(world, f"operator-{lower}", f"biobank-{lower}", [Role.NODE_OPERATOR], [node]),
    ]


def _node(world: TrustWorld, node: str) -> DirectoryNode:
    return DirectoryNode(
        node=node,
        organisation=f"biobank-{node.lower()}",
        signing_key=_text(world, node),
        agreement_key=_recipient(world, node),
    )
