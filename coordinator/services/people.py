"""Who the people of the federation are."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from sqlalchemy.orm import Session

from coordinator.store.audit import AuditRepository
from coordinator.store.persons import Person, PersonRepository
from hansa.contract.digests import digest
from hansa.contract.errors import HansaError, Reason
from hansa.contract.ids import PERSON_NAME

RESEARCHER: Final = "researcher"
OPERATOR: Final = "operator"
ROLES: Final = (RESEARCHER, OPERATOR)
_KEY_CHARACTERS: Final = 1024


def load_person_key(public_key_pem: str) -> Ed25519PublicKey:
    """Return the Ed25519 public key in ``public_key_pem``.

    Raises:
        HansaError: ``KEY_INVALID``; something else, a private key for instance.
    """
    try:
        if len(public_key_pem) > _KEY_CHARACTERS:
            raise ValueError("too long")
        key = serialization.load_pem_public_key(public_key_pem.encode())
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise HansaError(Reason.KEY_INVALID, field="public_key_pem") from error
    if not isinstance(key, Ed25519PublicKey):
        raise HansaError(Reason.KEY_INVALID, field="public_key_pem")
    return key


def make_person(name: str, role: str, public_key_pem: str) -> Person:
    """Return a person whose name, role and key are good.

    Raises:
        HansaError: ``PERSON_INVALID`` or ``KEY_INVALID``, with the field.
    """
    if not PERSON_NAME.fullmatch(name):
        words = "A person's name is 1 to 64 of a-z, 0-9, '.', '_' and '-', and starts with a letter or digit."
        raise HansaError(Reason.PERSON_INVALID, words, field="name")
    if role not in ROLES:
        raise HansaError(Reason.PERSON_INVALID, "A person's role is researcher or operator.", field="role")
    key = load_person_key(public_key_pem)
    # Written anew, so that one key has one form.
    pem = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return Person(name, role, pem.decode(), digest(der))


def add_person(session: Session, person: Person, *, actor: str, now: datetime) -> Person:
    """Make ``person`` known; the same person again changes nothing.

    Raises:
        HansaError: ``PERSON_EXISTS``; the name has another key or role.
    """
    people = PersonRepository(session)
    known = people.get(person.name)
    if known is not None:
        if (known.role, known.fingerprint) != (person.role, person.fingerprint):
            raise HansaError(Reason.PERSON_EXISTS, field="name")
        return known
    people.add(person, now)
    subject = f"person {person.name} ({person.role}, {person.fingerprint})"
    AuditRepository(session).append(at=now, actor=actor, action="person_added", subject=subject)
    return person
