from pathlib import Path

import pytest

from hansa.contract.errors import HansaError, Reason
from hansa.sdk.profile import find_profile, load_profile, parse_profile

WHOLE = b"""
federation = "demo"
endpoint = "127.0.0.1:7443"
ca_file = "ca.pem"
person = "ada"
key_file = "keys/ada.pem"
trust_root = "root.json"
"""


def test_relative_paths_are_taken_from_the_profile_s_folder(tmp_path: Path) -> None:
    (tmp_path / "profile.toml").write_bytes(WHOLE)
    profile = load_profile(tmp_path / "profile.toml")
    assert profile.ca_file == tmp_path / "ca.pem"
    assert profile.key_file == tmp_path / "keys" / "ada.pem"
    assert profile.trust_root == tmp_path / "root.json"


def test_absolute_paths_stay(tmp_path: Path) -> None:
    profile = parse_profile(WHOLE.replace(b'"ca.pem"', b'"/etc/ca.pem"'), tmp_path)
    assert profile.ca_file == Path("/etc/ca.pem")


def test_a_profile_that_is_written_is_read_back_the_same(tmp_path: Path) -> None:
    profile = parse_profile(WHOLE.replace(b"keys/ada.pem", rb"odd \"\\ name"), tmp_path)
    assert parse_profile(profile.to_toml().encode(), tmp_path) == profile


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ((b'person = "ada"', b""), "person"),
        ((b'person = "ada"', b"person = 1"), "person"),
        ((b'person = "ada"', b'person = "Ada Lovelace"'), "person"),
        ((b'person = "ada"', b'person = "ada"\ntoken = "x"'), "token"),
        ((b'"demo"', b'"De mo"'), "federation"),
        ((b'"127.0.0.1:7443"', b'"127.0.0.1"'), "endpoint"),
        ((b'"127.0.0.1:7443"', b'"127.0.0.1:0"'), "endpoint"),
        ((b'"127.0.0.1:7443"', b'"127.0.0.1:70000"'), "endpoint"),
        ((b'"127.0.0.1:7443"', b'"https://x:1"'), "endpoint"),
        ((b'"ca.pem"', b'""'), "ca_file"),
        ((b'trust_root = "root.json"', b""), "trust_root"),
        ((b'person = "ada"', b"person = "), "profile"),
        ((b'"ada"', b'"\xff"'), "profile"),
    ],
)
def test_a_profile_that_is_not_whole_and_known_is_refused(
    tmp_path: Path, change: tuple[bytes, bytes], field: str
) -> None:
    with pytest.raises(HansaError) as caught:
        parse_profile(WHOLE.replace(*change), tmp_path)
    assert (caught.value.reason, caught.value.field) == (Reason.CONFIG_INVALID, field)


def test_a_missing_profile_says_how_to_name_one(tmp_path: Path) -> None:
    with pytest.raises(HansaError, match="--profile"):
        load_profile(tmp_path / "none.toml")


def test_the_explicit_profile_wins_over_the_environment_and_that_over_the_user_s() -> None:
    environment = {"HANSA_PROFILE": "/b"}
    assert find_profile(Path("/a"), environment) == Path("/a")
    assert find_profile(None, environment) == Path("/b")
    assert find_profile(None, {}).parts[-2:] == ("hansa", "profile.toml")
