import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from hansa.cli.main import cli
from hansa.sdk.keys import create_key

SUBMIT = ("job", "submit", "allele-frequency", "--project", "lct", "--dataset", "FI-lct", "--param", "variants=rs1")


def hansa(arguments: Sequence[str], profile: str = "/nowhere/profile.toml") -> Result:
    return CliRunner().invoke(cli, list(arguments), env={"HANSA_PROFILE": profile, "COLUMNS": "200"})


@pytest.mark.parametrize(
    "arguments",
    [
        ("job", "submit"),
        ("job", "submit", "allele-frequency"),
        ("job", "submit", "allele-frequency", "--dataset"),
        (*SUBMIT, "--param", "variants"),
        (*SUBMIT, "--param", "=rs1"),
        (*SUBMIT, "--param", "variants=rs2"),
        (*SUBMIT, "--dataset", "FI-lct"),
        (*SUBMIT, "--quorum", "0"),
        (*SUBMIT, "--quorum", "2"),
        (*SUBMIT, "--quorum", "-1"),
        (*SUBMIT, "--quorum", "many"),
        (*SUBMIT, "--deadline", "0m"),
        (*SUBMIT, "--deadline", "-5m"),
        (*SUBMIT, "--deadline", "soon"),
        (*SUBMIT, "--deadline", "30"),
        (*SUBMIT, "--deadline", ""),
        (*SUBMIT, "--deadline", "367d"),
        (*SUBMIT, "--deadline", "999999d"),
        (*SUBMIT, "--output", "xml"),
        (*SUBMIT, "--nonsense"),
        ("job", "result"),
        ("job", "result", "x", "--plot", "x.gif"),
        ("job", "result", "x", "--plot", "/dev/null.png/x.png"),
        ("job", "list", "--limit", "0"),
        (*SUBMIT, "--release-class", "none"),
        ("admin", "person", "add", "eve"),
        ("trust", "add-person", "/x", "eve", "--organisation", "o", "--role", "root", "--key", "/nowhere/x"),
        ("trust", "add-person", "/x", "eve", "--organisation", "o", "--role", "auditor", "--key", "/nowhere/x"),
        ("trust", "sign", "/nowhere/repo"),
        ("analysis", "review", "/nowhere/bundle", "--person", "eve", "--key", "/nowhere/x"),
        ("admin", "node", "invite", "FI", "--valid", "8d"),
        ("admin", "node", "confirm", "FI", "--fingerprint", "sha256:abc"),
        ("analysis", "publish", "/nowhere/bundle", "--repo", "/nowhere/repo"),
        ("nonsense",),
        ("--nonsense",),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(arguments: Sequence[str]) -> None:
    result = hansa(arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1
    assert "/nowhere/profile.toml" not in result.stderr, "found before the profile was even read"


def test_wrong_usage_has_a_stable_reason_where_it_is_about_the_job() -> None:
    assert hansa((*SUBMIT, "--quorum", "9")).stderr.startswith("error: QUORUM_INVALID: ")
    assert hansa((*SUBMIT, "--deadline", "0s")).stderr.startswith("error: DEADLINE_INVALID: ")
    assert hansa((*SUBMIT, "--param", "x")).stderr.startswith("error: USAGE: ")


def test_with_json_output_an_error_is_json_also_when_the_arguments_cannot_be_parsed() -> None:
    for arguments in ((*SUBMIT, "--output", "json", "--quorum", "9"), (*SUBMIT, "--output=json", "--nonsense")):
        error = json.loads(hansa(arguments).stderr)["error"]
        assert set(error) == {"reason", "message", "field"}


def test_a_missing_profile_is_wrong_usage() -> None:
    result = hansa(SUBMIT)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: CONFIG_INVALID: The profile /nowhere/profile.toml cannot be read")


def profile_in(folder: Path, key: Path) -> Path:
    path = folder / "profile.toml"
    path.write_text(
        'federation = "demo"\nendpoint = "127.0.0.1:1"\nca_file = "ca.pem"\ntrust_root = "root.json"\n'
        f'person = "ada"\nkey_file = "{key}"\n'
    )
    return path


def test_a_missing_or_open_key_is_wrong_usage(tmp_path: Path) -> None:
    key = tmp_path / "ada"
    profile = profile_in(tmp_path, key)
    missing = hansa(("nodes", "list", "--profile", str(profile)))
    assert (missing.exit_code, missing.stderr.split(": ")[1]) == (2, "KEY_INVALID")
    create_key(key)
    key.chmod(0o644)
    open_ = hansa(("nodes", "list"), profile=str(profile))
    assert (open_.exit_code, open_.stderr.split(": ")[1]) == (2, "KEY_INVALID")


def test_a_missing_ca_is_wrong_usage(tmp_path: Path) -> None:
    create_key(tmp_path / "ada")
    result = hansa(("nodes", "list"), profile=str(profile_in(tmp_path, tmp_path / "ada")))
    assert (result.exit_code, result.stderr.split(": ")[1]) == (2, "CONFIG_INVALID")


def test_the_profile_may_be_named_before_or_after_the_command() -> None:
    for arguments in (("--profile", "/a/b.toml", "nodes", "list"), ("nodes", "list", "--profile", "/a/b.toml")):
        assert "/a/b.toml" in hansa(arguments).stderr


def test_key_create_makes_both_halves_and_prints_the_fingerprint(tmp_path: Path) -> None:
    result = hansa(("key", "create", str(tmp_path / "ada"), "--output", "json"))
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert Path(document["key_file"]).exists()
    assert Path(document["public_key_file"]).exists()
    assert document["key_fingerprint"].startswith("sha256:")
    assert "PRIVATE" not in result.output
    again = hansa(("key", "create", str(tmp_path / "ada")))
    assert (again.exit_code, again.stderr.split(": ")[1]) == (2, "FILE_INVALID")


@pytest.mark.parametrize("group", ["key", "analyses", "datasets", "nodes", "job", "admin"])
def test_every_group_tells_what_it_can_do(group: str) -> None:
    assert group in hansa(("--help",)).stdout
    result = hansa((group, "--help"))
    assert (result.exit_code, result.stderr) == (0, "")
    assert "Commands:" in result.stdout
