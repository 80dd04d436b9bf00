"""What people write (variants, regions, parameters, tokens) has one normal form."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.contract.enrolment import Invitation, parse_token
from hansa.contract.errors import HansaError, Reason
from hansa.contract.ids import NODE_ID, NodeId, is_run_id, job_id, run_id
from hansa.contract.limits import MANIFEST_BYTES, MAX_VARIANTS
from hansa.contract.manifest import Manifest, check_parameters, parse_manifest
from hansa.contract.variants import (
    RS_ID,
    Region,
    Variant,
    parse_region,
    parse_variant,
    parse_variants,
)

positions = st.integers(1, 999_999_999)
alleles = st.text("ACGT", min_size=1, max_size=4)
variants = st.builds(Variant, st.integers(1, 22), positions, alleles, alleles).filter(lambda v: v.ref != v.alt)
rs_ids = st.integers(1, 10**15 - 1).map(lambda number: f"rs{number}")
names = st.one_of(variants.map(str), rs_ids)
spelled = names.map(lambda name: name if name.startswith("rs") else f"chr{name}") | names
spaces = st.sampled_from(["", " ", "  "])


@given(variants, st.sampled_from(["", "chr"]), spaces)
def test_a_variant_is_read_as_it_is_shown(variant: Variant, prefix: str, space: str) -> None:
    assert parse_variant(f"{space}{prefix}{variant}{space}") == variant


@given(st.lists(spelled, min_size=1, max_size=8), spaces)
def test_the_normal_form_of_a_normal_form_is_itself(given_names: list[str], space: str) -> None:
    normal = parse_variants(f"{space},{space}".join(given_names))
    assert parse_variants(",".join(normal)) == normal
    assert len(set(normal)) == len(normal)
    assert set(normal) == {name.removeprefix("chr") for name in given_names}


@given(st.lists(variants, min_size=1))
def test_variants_are_ordered_as_on_the_genome(given_variants: list[Variant]) -> None:
    assert sorted(given_variants) == sorted(given_variants, key=lambda v: (v.chrom, v.pos, v.ref, v.alt))


@given(st.integers(1, 22), positions, positions)
def test_a_region_is_read_as_it_is_shown(chrom: int, one: int, other: int) -> None:
    region = Region(chrom, *sorted((one, other)))
    assert parse_region(f" chr{region} ") == region == parse_region(str(region))
    assert region.length == abs(one - other) + 1
    assert region.holds(Variant(chrom, one, "A", "C"))
    assert not region.holds(Variant(chrom, region.end + 1, "A", "C"))
    assert not region.holds(Variant(chrom % 22 + 1, one, "A", "C"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "X:5:A:C",
        "23:5:A:C",
        "0:5:A:C",
        "1:0:A:C",
        "1:05:A:C",
        "1:5:A:A",
        "1:5:a:c",
        "1:5:A:<DEL>",
        "1:5:A:N",
        "1:5:A",
        "1:5:A:C:G",
        "1:\u0665:A:C",
        "1:5:A:C\n1:6:A:C",
        "rs0",
        "rs",
        "RS5",
        "rs1234567890123456",
        "1:5:A:C,",
        "../../etc/passwd",
        "\x1b[2J",
        "\ud800",
    ],
)
def test_what_is_no_variant_is_refused_in_ascii(text: str) -> None:
    with pytest.raises(ValueError, match="is not chrom:pos:ref:alt") as caught:
        parse_variants(text)
    assert str(caught.value).isascii()
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("text", ["", "2", "2:5", "2:9-5", "2:0-5", "X:1-5", "2:1-5\n3:1-5", "2:1\u20135", "2:-5-9"])
def test_what_is_no_region_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not chrom:start-end"):
        parse_region(text)


@given(st.text(max_size=30))
def test_any_text_is_a_list_of_variants_or_refused(text: str) -> None:
    try:
        normal = parse_variants(text)
    except ValueError:
        return
    assert all(RS_ID.fullmatch(name) or str(parse_variant(name)) == name for name in normal)


# --- parameters ------------------------------------------------------------------------------

MANIFEST: dict[str, Any] = {
    "name": "allele-frequency",
    "version": "1.0",
    "title": "Allele frequencies",
    "parameters": {
        "variants": {"type": "variants"},
        "region": {"type": "region"},
        "stratify": {"type": "choice", "choices": ["sex"]},
        "group": {"type": "choice", "choices": ["a", "b"], "required": True},
    },
    "one_of": [["variants", "region"]],
    "summary": {
        "axes": {"variant": {"labels": "variant"}},
        "arrays": {"ac": {"dtype": "int64", "axes": ["variant"], "merge": "sum", "released": True}},
    },
    "disclosure": "allele-counts",
}


def manifest(**changes: Any) -> Manifest:
    return parse_manifest(json.dumps({**MANIFEST, **changes}).encode())


def refusal(given_parameters: dict[str, str]) -> tuple[Reason, str]:
    with pytest.raises(HansaError) as caught:
        check_parameters(manifest(), given_parameters)
    assert caught.value.public.isascii() or "…" in caught.value.public
    return caught.value.reason, caught.value.field


@given(st.lists(spelled, min_size=1, max_size=5), st.booleans())
def test_checked_parameters_check_to_themselves(given_names: list[str], stratify: bool) -> None:
    given_parameters = {"group": "a", "variants": ",".join(given_names), **({"stratify": "sex"} if stratify else {})}
    normal = check_parameters(manifest(), given_parameters)
    assert check_parameters(manifest(), normal) == normal
    assert list(normal) == [name for name in MANIFEST["parameters"] if name in normal]


@pytest.mark.parametrize(
    ("given_parameters", "reason", "field"),
    [
        ({"group": "a"}, Reason.PARAMETER_MISSING, "variants"),
        ({"group": "a", "variants": "rs7", "region": "2:5-9"}, Reason.PARAMETER_MISSING, "variants"),
        ({"variants": "rs7"}, Reason.PARAMETER_MISSING, "group"),
        ({"group": "c", "variants": "rs7"}, Reason.PARAMETER_INVALID, "group"),
        ({"group": "a", "variants": "rs7", "stratify": "age"}, Reason.PARAMETER_INVALID, "stratify"),
        ({"group": "a", "variants": "x"}, Reason.PARAMETER_INVALID, "variants"),
        ({"group": "a", "region": "2:9-5"}, Reason.PARAMETER_INVALID, "region"),
        ({"group": "a", "variants": "rs7", "more": ""}, Reason.PARAMETER_UNKNOWN, "more"),
        (
            {"group": "a", "variants": ",".join(f"rs{number + 1}" for number in range(MAX_VARIANTS + 1))},
            Reason.PARAMETER_INVALID,
            "variants",
        ),
    ],
)
def test_a_wrong_parameter_is_refused_by_name(given_parameters: dict[str, str], reason: Reason, field: str) -> None:
    assert refusal(given_parameters) == (reason, field)


@given(st.dictionaries(st.text(max_size=50), st.text(max_size=50), max_size=4))
def test_any_parameters_are_checked_or_refused_with_a_field(given_parameters: dict[str, str]) -> None:
    reason, field = refusal(given_parameters)
    assert reason.startswith("PARAMETER_")
    assert field in MANIFEST["parameters"] or reason is Reason.PARAMETER_UNKNOWN


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "../../evil"},
        {"name": "Allele Frequency"},
        {"name": "allele-frequency\n"},
        {"version": "1.0; rm"},
        {"version": "v1.0"},
        {"extra": 1},
        {"snakefile": "../Snakefile"},
        {"disclosure": "none"},
        {"one_of": [["nothing"]]},
        {"parameters": {"Bad Name": {"type": "region"}}},
        {"parameters": {"name\n": {"type": "region"}}, "one_of": []},
        {"parameters": {"file": {"type": "path"}}, "one_of": []},
        {"limits": {"wall_seconds": 0}},
        {"summary": {**MANIFEST["summary"], "arrays": {}}},
        {"summary": {**MANIFEST["summary"], "axes": {}}},
        {"summary": {**MANIFEST["summary"], "axes": {"variant": {"labels": "variant", "choices": ["a"]}}}},
    ],
)
def test_a_manifest_that_says_more_or_else_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(HansaError) as caught:
        manifest(**changes)
    assert caught.value.reason is Reason.MANIFEST_INVALID


@given(st.binary(max_size=200))
def test_any_bytes_are_no_manifest(data: bytes) -> None:
    for text in (data, b" " * (MANIFEST_BYTES + 1)):
        with pytest.raises(HansaError):
            parse_manifest(text)


# --- tokens and ids ----------------------------------------------------------------------------

endpoints = st.builds(lambda host, port: f"{host}:{port}", st.sampled_from(["127.0.0.1", "[::1]", "a.b-c"]), positions)


@given(st.from_regex(rf"\A{NODE_ID.pattern}\Z"), st.binary(min_size=32, max_size=32), st.integers(1, 65535))
def test_an_invitation_survives_being_copied(node: str, secret: bytes, port: int) -> None:
    from hansa.contract.enrolment import encode

    invitation = Invitation(NodeId(node), encode(secret), secret[::-1], f"[::1]:{port}", secret[1:] + b"!")
    assert parse_token(f" {invitation.token()}\n") == invitation


@given(st.text(max_size=60), st.integers(0, 400))
def test_no_other_text_is_an_invitation(text: str, cut: int) -> None:
    whole = Invitation(NodeId("FI"), "A" * 43, b"\0" * 32, "127.0.0.1:7000", b"\1" * 32).token()
    for wrong in (text, whole[: cut % len(whole)], whole + text.strip() + ".x", whole[:-1] + "F"):
        with pytest.raises(HansaError) as caught:
            parse_token(wrong)
        assert caught.value.reason is Reason.ENROLMENT_REFUSED
        assert whole not in str(caught.value)


@given(st.uuids(), st.from_regex(rf"\A{NODE_ID.pattern}\Z"), st.integers(0, 9))
def test_a_run_is_named_by_what_it_is(job: object, node: str, round_: int) -> None:
    name = run_id(str(job), node, round_)
    assert is_run_id(name)
    assert name == run_id(str(job), node, round_) != run_id(str(job), node, round_ + 1)
    assert job_id(str(job)) == str(job)


@given(st.text(max_size=40))
def test_a_name_that_cannot_be_a_jobs_is_answered_like_one_that_is_not_there(text: str) -> None:
    with pytest.raises(HansaError) as caught:
        job_id(text)
    assert caught.value.reason is Reason.JOB_UNKNOWN
