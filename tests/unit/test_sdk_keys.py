import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from hansa.contract.digests import DIGEST
from hansa.contract.errors import HansaError, Reason
from hansa.sdk.keys import (
    create_key,
    create_recipient_key,
    key_fingerprint,
    load_private_key,
    load_recipient_key,
    public_pem,
    read_public_key,
    read_recipient_public_key,
)


def test_a_key_is_made_for_its_owner_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        public = create_key(tmp_path / "ada")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "ada").stat().st_mode) == 0o600
    assert public_pem(load_private_key(tmp_path / "ada").public_key()) == public_pem(public)
    assert public_pem(read_public_key(tmp_path / "ada.pub")) == public_pem(public)
    assert DIGEST.fullmatch(key_fingerprint(public))


def test_a_recipient_key_is_kept_alike_and_is_never_taken_for_one_that_signs(tmp_path: Path) -> None:
    public = create_recipient_key(tmp_path / "box")
    create_key(tmp_path / "ada")
    assert stat.S_IMODE((tmp_path / "box").stat().st_mode) == 0o600
    assert load_recipient_key(tmp_path / "box").public_key() == public
    assert read_recipient_public_key(tmp_path / "box.pub") == public
    wrong: list[tuple[Callable[[Path], object], str]] = [
        (load_private_key, "box"),
        (read_public_key, "box.pub"),
        (load_recipient_key, "ada"),
        (read_recipient_public_key, "ada.pub"),
        (read_recipient_public_key, "box"),
    ]
    for read, name in wrong:
        with pytest.raises(HansaError) as caught:
            read(tmp_path / name)
        assert caught.value.reason is Reason.KEY_INVALID


@pytest.mark.parametrize("name", ["ada", "ada.pub"])
def test_nothing_is_ever_overwritten(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(HansaError) as caught:
        create_key(tmp_path / "ada")
    assert caught.value.reason is Reason.FILE_INVALID
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"


def test_a_key_is_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "ada").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(HansaError):
        create_key(tmp_path / "ada")
    assert not (tmp_path / "elsewhere").exists()


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(HansaError, match="cannot be written"):
        create_key(tmp_path / "none" / "ada")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_key_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    create_key(tmp_path / "ada")
    (tmp_path / "ada").chmod(mode)
    with pytest.raises(HansaError, match="chmod 600") as caught:
        load_private_key(tmp_path / "ada")
    assert caught.value.reason is Reason.KEY_INVALID


def write_private(path: Path, data: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(data)


def test_a_key_of_another_kind_is_refused(tmp_path: Path) -> None:
    other = ec.generate_private_key(ec.SECP256R1())
    pem = other.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write_private(tmp_path / "other", pem)
    public = other.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    (tmp_path / "other.pub").write_bytes(public)
    with pytest.raises(HansaError):
        load_private_key(tmp_path / "other")
    with pytest.raises(HansaError):
        read_public_key(tmp_path / "other.pub")


@pytest.mark.parametrize("data", [b"", b"-----BEGIN PRIVATE KEY-----\n", b"\xff" * 100])
def test_what_is_no_key_is_refused(tmp_path: Path, data: bytes) -> None:
    write_private(tmp_path / "none", data)
    with pytest.raises(HansaError) as caught:
        load_private_key(tmp_path / "none")
    assert caught.value.reason is Reason.KEY_INVALID
    with pytest.raises(HansaError):
        read_public_key(tmp_path / "none")


def test_a_folder_or_a_missing_file_is_no_key(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(HansaError) as caught:
            load_private_key(path)
        assert caught.value.reason is Reason.KEY_INVALID


def test_a_private_key_handed_over_as_a_public_one_is_refused_with_a_warning(tmp_path: Path) -> None:
    create_key(tmp_path / "ada")
    with pytest.raises(HansaError, match="nobody else may have"):
        read_public_key(tmp_path / "ada")
