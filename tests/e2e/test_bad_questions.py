"""Bad input by the public commands: one clear reason, the right exit code, nothing left behind."""

from __future__ import annotations

import gzip
import shutil
import subprocess
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deploy.local.commands import BIN, environment
from tests.support.local_federation import Ended, Federation

pytestmark = pytest.mark.slow

_FI = ("--dataset", "FI-aisnp")
_VARIANT = ("--param", "variants=rs12913832")
_ANALYSIS = "allele-frequency"

_REFUSED = {
    "unknown analysis": (("no-such-analysis", *_FI, *_VARIANT), "ANALYSIS_UNKNOWN", 1),
    "unknown dataset": ((_ANALYSIS, "--dataset", "FI-nothing", *_VARIANT), "DATASET_UNKNOWN", 1),
    "unknown parameter": ((_ANALYSIS, *_FI, *_VARIANT, "--param", "colour=blue"), "PARAMETER_UNKNOWN", 1),
    "missing parameter": ((_ANALYSIS, *_FI), "PARAMETER_MISSING", 1),
    "two questions in one": ((_ANALYSIS, *_FI, *_VARIANT, "--param", "region=2:1-9"), "PARAMETER_MISSING", 1),
    "unknown stratum": ((_ANALYSIS, *_FI, *_VARIANT, "--param", "stratify=age"), "PARAMETER_INVALID", 1),
    "malformed variant": ((_ANALYSIS, *_FI, "--param", "variants=15:28365618:A"), "PARAMETER_INVALID", 1),
    "chromosome X": ((_ANALYSIS, *_FI, "--param", "variants=X:5:A:G"), "PARAMETER_INVALID", 1),
    "shell in a variant": ((_ANALYSIS, *_FI, "--param", "variants=rs1;touch /tmp/x"), "PARAMETER_INVALID", 1),
    "region backwards": ((_ANALYSIS, *_FI, "--param", "region=2:9-1"), "PARAMETER_INVALID", 1),
    "quorum above the nodes": ((_ANALYSIS, *_FI, *_VARIANT, "--quorum", "2"), "QUORUM_INVALID", 2),
    "no quorum": ((_ANALYSIS, *_FI, *_VARIANT, "--quorum", "0"), "QUORUM_INVALID", 2),
    "deadline in the past": ((_ANALYSIS, *_FI, *_VARIANT, "--deadline", "-5m"), "DEADLINE_INVALID", 2),
    "no deadline": ((_ANALYSIS, *_FI, *_VARIANT, "--deadline", "0m"), "DEADLINE_INVALID", 2),
    "parameter without value": ((_ANALYSIS, *_FI, "--param", "variants"), "USAGE", 2),
}


@dataclass(frozen=True, slots=True)
class Asked:
    """What became of all bad questions, and the researcher's jobs before and after them."""

    ends: Mapping[str, Ended]
    before: Any
    after: Any


@pytest.fixture(scope="module")
def asked(federation: Federation) -> Asked:
    before = federation.hansa("job", "list").document
    with ThreadPoolExecutor(max_workers=2) as pool:
        ends = pool.map(lambda case: federation.hansa("job", "submit", *case[0]), _REFUSED.values())
        found = dict(zip(_REFUSED, ends, strict=True))
    return Asked(found, before, federation.hansa("job", "list").document)


@pytest.mark.parametrize("name", _REFUSED)
def test_a_bad_question_is_refused_in_one_line_with_its_reason_and_exit_code(asked: Asked, name: str) -> None:
    _, reason, code = _REFUSED[name]
    ended = asked.ends[name]
    assert (ended.reason, ended.code) == (reason, code), ended.err
    assert ended.out == ""
    assert len(ended.err.strip().splitlines()) == 1


def test_a_refused_question_leaves_no_job_behind(asked: Asked) -> None:
    assert asked.after == asked.before


def test_a_region_larger_than_the_policy_allows_is_declined_by_the_node(federation: Federation) -> None:
    ended = federation.hansa("job", "submit", _ANALYSIS, *_FI, "--param", "region=2:1-2000000", "--wait")
    assert ended.code == 1
    assert ended.document["state"] == "DECLINED"
    (node,) = ended.document["nodes"]
    assert (node["node"], node["state"], node["reason"]) == ("FI", "DECLINED", "REGION_TOO_LARGE")


def test_a_job_that_is_not_there_is_unknown(federation: Federation) -> None:
    for name in ("01890000-0000-7000-8000-000000000000", "../../etc/passwd"):
        ended = federation.hansa("job", "show", name)
        assert (ended.reason, ended.code) == ("JOB_UNKNOWN", 1)


def test_an_operators_commands_are_refused_to_a_researcher(federation: Federation) -> None:
    ended = federation.hansa("admin", "node", "invite", "NO")
    assert (ended.reason, ended.code) == ("PERMISSION_DENIED", 1)
    ended = federation.hansa("job", "submit", _ANALYSIS, *_FI, *_VARIANT, person="operator")
    assert (ended.reason, ended.code) == ("PERMISSION_DENIED", 1)


def test_a_coordinator_that_is_not_there_has_its_own_exit_code(federation: Federation, tmp_path: Path) -> None:
    text = federation.layout.profile("researcher").read_text()
    profile = tmp_path / "nowhere.toml"
    profile.write_text(
        "\n".join('endpoint = "127.0.0.1:1"' if line.startswith("endpoint") else line for line in text.splitlines())
    )
    done = subprocess.run(
        [str(BIN / "hansa"), "--profile", str(profile), "nodes", "list"],
        check=False,
        capture_output=True,
        text=True,
        env=environment(),
    )
    assert done.returncode == 3
    assert "COORDINATOR_UNREACHABLE" in done.stderr


def _plain(vcf: Path) -> str:
    return gzip.decompress(vcf.read_bytes()).decode()


def _indexed(path: Path, text: str) -> Path:
    path.write_text(text)
    subprocess.run(["bgzip", "-f", str(path)], check=True)
    subprocess.run(["tabix", "-p", "vcf", f"{path}.gz"], check=True)
    return path.with_name(f"{path.name}.gz")


def test_a_vcf_of_another_build_is_refused(federation: Federation, demo_data: Path, tmp_path: Path) -> None:
    # Chromosome 1 as long as in GRCh38, and all others of unknown length.
    lines = _plain(demo_data / "FI" / "aisnp.vcf.gz").splitlines(keepends=True)
    kept = [line for line in lines if not line.startswith("##contig")]
    lengths = {"1": 248956422, "2": 242193529, "15": 101991189}
    contigs = [f"##contig=<ID={name},length={length}>\n" for name, length in lengths.items()]
    contigs += [f"##contig=<ID={name}>\n" for name in range(1, 23) if str(name) not in lengths]
    vcf = _indexed(tmp_path / "other.vcf", "".join([kept[0], *contigs, *kept[1:]]))
    samples = str(demo_data / "FI" / "samples.tsv")
    ended = federation.at_node(
        "FI", "dataset", "add", "FI-other", "--vcf", str(vcf), "--samples", samples, "--build", "GRCh37"
    )
    assert ended.code == 1
    assert "BUILD_MISMATCH" in ended.err
    offered = federation.hansa("datasets", "list").document["datasets"]
    assert "FI-other" not in {item["dataset"] for item in offered}


@pytest.mark.parametrize(
    ("damage", "reason"), [("truncated", "VCF_TRUNCATED"), ("no index", "VCF_NOT_INDEXED"), ("samples", "SAMPLES")]
)
def test_a_damaged_delivery_is_refused_and_leaves_no_dataset(
    federation: Federation, demo_data: Path, tmp_path: Path, damage: str, reason: str
) -> None:
    for name in ("aisnp.vcf.gz", "aisnp.vcf.gz.tbi", "samples.tsv"):
        shutil.copy(demo_data / "FI" / name, tmp_path / name)
    vcf, samples = tmp_path / "aisnp.vcf.gz", tmp_path / "samples.tsv"
    if damage == "truncated":
        vcf.write_bytes(vcf.read_bytes()[:-200])
    elif damage == "no index":
        (tmp_path / "aisnp.vcf.gz.tbi").unlink()
    else:
        samples.write_text("".join(samples.read_text().splitlines(keepends=True)[:-1]))
    ended = federation.at_node("FI", "dataset", "add", "FI-bad", "--vcf", str(vcf), "--samples", str(samples))
    assert ended.code == 1
    assert reason in ended.err
    assert "FI-bad" not in federation.at_node("FI", "dataset", "list").out
