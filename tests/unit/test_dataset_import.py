"""Import of VCFs: what becomes of good records, and the refusal of each bad input."""

from __future__ import annotations

import gzip
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from hansa.contract.errors import HansaError, Reason
from node_agent.staging.importer import import_dataset
from node_agent.staging.snapshot import PSAM, PVAR, SNAPSHOT_FILE, SNAPSHOT_FILES, read_snapshot, verify_snapshot
from tests.support.genotypes import (
    GRCH38_CONTIGS,
    PEOPLE,
    SEXES,
    Dataset,
    header,
    record,
    write_dataset,
    write_samples,
    write_vcf,
)

HOM = ("0/0", "0/1", "1/1", "0/0")
GOOD = (record("1:1000", "A", "C", HOM, name="rs5"), record("2:2000", "G", "T", HOM))


def _import(data: Dataset, target: Path, build: str | None = None) -> Sequence[str]:
    """Return the variants of the snapshot, as plink2's .pvar has them."""
    import_dataset(data.vcf, data.samples, build=build, target=target)
    lines = (target / PVAR).read_text().splitlines()
    return [":".join(line.split("\t")) for line in lines[1:]]


def _refusal(data: Dataset, target: Path, build: str | None = None) -> HansaError:
    """Return the refusal, after checking that nothing is left and nobody named."""
    with pytest.raises(HansaError) as refusal:
        import_dataset(data.vcf, data.samples, build=build, target=target)
    assert not target.exists()
    assert not any(person in str(refusal.value) for person in PEOPLE)
    return refusal.value


def _bad_record(tmp_path: Path, *lines: str) -> HansaError:
    return _refusal(write_dataset(tmp_path, lines), tmp_path / "snapshot")


def test_a_snapshot_says_what_is_in_it_and_its_files_bear_it_out(tmp_path: Path) -> None:
    data, target = write_dataset(tmp_path, GOOD), tmp_path / "snapshot"
    snapshot = import_dataset(data.vcf, data.samples, build=None, target=target)
    assert (snapshot.build, snapshot.people, snapshot.variants) == ("GRCh37", 4, 2)
    assert snapshot.people_by_sex == {"female": 1, "male": 2, "unknown": 1}
    assert not any(snapshot.skipped.values())
    assert read_snapshot(target) == verify_snapshot(target) == snapshot
    assert {path.name for path in target.iterdir()} == {*SNAPSHOT_FILES, SNAPSHOT_FILE}
    assert all(path.stat().st_mode & 0o777 == 0o444 for path in target.iterdir())


def test_the_same_input_gives_the_same_digest_and_another_gives_another(tmp_path: Path) -> None:
    data = write_dataset(tmp_path, GOOD)
    first = import_dataset(data.vcf, data.samples, build=None, target=tmp_path / "a")
    again = import_dataset(data.vcf, data.samples, build=None, target=tmp_path / "b")
    write_samples(tmp_path, dict(zip(PEOPLE, reversed(SEXES), strict=True)))
    other = import_dataset(data.vcf, data.samples, build=None, target=tmp_path / "c")
    assert first == again
    assert first.digest != other.digest


def test_no_file_of_a_snapshot_names_a_person(tmp_path: Path) -> None:
    _import(write_dataset(tmp_path, GOOD), tmp_path / "snapshot")
    content = b"".join(path.read_bytes() for path in (tmp_path / "snapshot").iterdir())
    assert not any(person.encode() in content for person in PEOPLE)
    assert (tmp_path / "snapshot" / PSAM).read_text() == "#IID\tSEX\n1\t2\n2\t1\n3\t1\n4\tNA\n"


def test_chromosomes_may_be_called_with_chr_and_rs_ids_are_kept_first_one_first(tmp_path: Path) -> None:
    lines = [
        record("chr1:1000", "a", "c", HOM, name="x;rs7;rs8"),
        record("chr2:2000", "G", "T", HOM, name="esv99"),
    ]
    contigs = {f"chr{contig}": length for contig, length in GRCH38_CONTIGS.items()}
    vcf = write_vcf(tmp_path, header(contigs=contigs) + "\n".join(lines) + "\n")
    samples = write_samples(tmp_path, dict(zip(PEOPLE, SEXES, strict=True)))
    assert _import(Dataset(vcf, samples), tmp_path / "snapshot") == ["1:1000:rs7:A:C", "2:2000:.:G:T"]
    assert read_snapshot(tmp_path / "snapshot").build == "GRCh38"


def test_records_of_several_alleles_are_split_and_what_cannot_be_used_is_counted(tmp_path: Path) -> None:
    data = write_dataset(
        tmp_path,
        [
            record("1:1000", "A", "C,G", ("1/2", "0/2", "0/0", "./1")),
            record("1:1001", "A", "<DEL>,T,*", ("1/2", "0/2", "0/0", "3/3")),
            record("1:1002", "A", "<INS:ME>", HOM),
            record("1:1003", "N", "T", HOM),
            record("1:1004", "A", "R", HOM),
            record("1:1005", "A", ".", ("0/0",) * 4),
            record("1:1006", "A", "C" * 1001, HOM),
            record("1:1007", "A", "A]2:300]", HOM),
        ],
    )
    variants = _import(data, tmp_path / "snapshot")
    assert variants == ["1:1000:.:A:C", "1:1000:.:A:G", "1:1001:.:A:T"]
    assert read_snapshot(tmp_path / "snapshot").skipped == {
        "symbolic": 4,
        "not_acgt": 2,
        "too_long": 1,
        "no_alt": 1,
        "multiallelic_split": 2,
        "half_calls": 1,
    }


def test_a_lone_dot_is_a_missing_genotype(tmp_path: Path) -> None:
    data = write_dataset(
        tmp_path, [record("1:1000", "A", "C", (".", "0/1", "1|1", "0/0")), record("1:1001", "A", "C", (".",) * 4)]
    )
    assert len(_import(data, tmp_path / "snapshot")) == 2


@pytest.mark.parametrize(
    "line",
    [
        record("1:1000", "A", "C", ("1", "0/1", "0/0", "0/0")),
        record("1:1000", "A", "C", ("1", "0", "0", "0")),
        record("1:1000", "A", "C", ("0/0/1", "0/1", "0/0", "0/0")),
        record("1:1000", "A", "C", ("0/2", "0/1", "0/0", "0/0")),
        record("1:1000", "A", "C", ("0/x", "0/1", "0/0", "0/0")),
        record("1:1000", "A", "C", ("0/1", "0/1")),
        record("1:1000", "A", "C", ("3", "4", "5", "6"), form="DP"),
        record("1:1000", "A", "A", HOM),
        record("1:0", "A", "C", HOM),
        record("1:249250622", "A", "C", HOM),
        record("1:anna", "A", "C", HOM),
        "something else altogether",
    ],
)
def test_a_record_that_cannot_be_used_is_refused(tmp_path: Path, line: str) -> None:
    assert _bad_record(tmp_path, GOOD[0].replace("1000", "500"), line).reason is Reason.VCF_RECORD_INVALID


def test_records_out_of_order_are_refused(tmp_path: Path) -> None:
    first, second, third = (record(place, "A", "C", HOM) for place in ("1:2000", "2:1000", "1:1000"))
    for lines in ((first, third), (first, second, third)):
        refusal = _bad_record(tmp_path, *lines)
        assert refusal.reason is Reason.VCF_RECORD_INVALID
        assert "bcftools sort" in refusal.public


@pytest.mark.parametrize("alts", [("C", "C"), ("C", "G,C"), ("C", "c"), ("G,G", "T")])
def test_one_variant_twice_is_refused_by_its_place(tmp_path: Path, alts: tuple[str, str]) -> None:
    refusal = _bad_record(tmp_path, *(record("1:1000", "A", alt, HOM) for alt in alts))
    assert refusal.reason is Reason.VCF_RECORD_DUPLICATE
    assert "1:1000" in refusal.public


@pytest.mark.parametrize("contig", ["X", "chrY", "MT", "GL000192.1", "23"])
def test_other_contigs_than_autosomes_are_refused_by_name(tmp_path: Path, contig: str) -> None:
    refusal = _bad_record(tmp_path, GOOD[0], record(f"{contig}:1000", "A", "C", HOM))
    assert refusal.reason is Reason.VCF_CONTIG_UNSUPPORTED
    assert contig in refusal.public


@pytest.mark.parametrize("lines", [(), (record("1:1000", "A", "<DEL>", HOM),)])
def test_a_vcf_without_a_variant_that_can_be_used_is_refused(tmp_path: Path, lines: Sequence[str]) -> None:
    assert _bad_record(tmp_path, *lines).reason is Reason.DATASET_INVALID


def test_a_sample_that_stands_twice_is_refused_by_its_column(tmp_path: Path) -> None:
    text = header(["anna", "bela", "anna"]) + record("1:1000", "A", "C", HOM[:3]) + "\n"
    data = Dataset(write_vcf(tmp_path, text), write_samples(tmp_path, {"anna": "female", "bela": "male"}))
    refusal = _refusal(data, tmp_path / "snapshot")
    assert refusal.reason is Reason.VCF_SAMPLE_DUPLICATE
    assert "column 12" in refusal.public


def test_a_vcf_of_sites_only_is_refused(tmp_path: Path) -> None:
    text = header([]).replace("\tFORMAT\n", "\n") + "1\t1000\t.\tA\tC\t.\tPASS\t.\n"
    data = Dataset(write_vcf(tmp_path, text), write_samples(tmp_path, {}))
    assert _refusal(data, tmp_path / "snapshot").reason is Reason.DATASET_INVALID


def test_a_vcf_without_an_index_or_with_a_damaged_one_is_refused(tmp_path: Path) -> None:
    data = write_dataset(tmp_path, GOOD, indexed=False)
    index = data.vcf.with_name(data.vcf.name + ".tbi")
    assert _refusal(data, tmp_path / "snapshot").reason is Reason.VCF_NOT_INDEXED
    for content in (b"", b"no index", gzip.compress(b"CSI\1")):
        index.write_bytes(content)
        assert _refusal(data, tmp_path / "snapshot").reason is Reason.VCF_NOT_INDEXED


def test_a_csi_index_serves_as_well(tmp_path: Path) -> None:
    data = write_dataset(tmp_path, GOOD, indexed=False)
    subprocess.run(["tabix", "--csi", "-p", "vcf", str(data.vcf)], check=True)
    assert len(_import(data, tmp_path / "snapshot")) == 2


@pytest.mark.parametrize("kept", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("end", [b"", bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")])
def test_a_vcf_that_is_cut_off_is_refused(tmp_path: Path, kept: float, end: bytes) -> None:
    lines = [record(f"1:{pos}", "A", "C", HOM) for pos in range(1000, 6000)]
    data = write_dataset(tmp_path, lines)
    whole = data.vcf.read_bytes()
    data.vcf.write_bytes(whole[: int(len(whole) * kept)] + end)
    assert _refusal(data, tmp_path / "snapshot").reason is Reason.VCF_TRUNCATED


def test_a_vcf_that_is_cut_off_between_two_blocks_is_refused(tmp_path: Path) -> None:
    # Only the missing last block tells: all others are whole.
    data = write_dataset(tmp_path, GOOD)
    data.vcf.write_bytes(data.vcf.read_bytes()[:-28])
    assert _refusal(data, tmp_path / "snapshot").reason is Reason.VCF_TRUNCATED


def test_a_vcf_with_a_damaged_block_is_refused(tmp_path: Path) -> None:
    lines = [record(f"1:{pos}", "A", "C", HOM) for pos in range(1000, 6000)]
    data = write_dataset(tmp_path, lines)
    content = bytearray(data.vcf.read_bytes())
    content[len(content) * 2 // 3] ^= 0xFF
    data.vcf.write_bytes(content)
    assert _refusal(data, tmp_path / "snapshot").reason is Reason.VCF_TRUNCATED


def test_what_is_no_bgzipped_vcf_is_refused(tmp_path: Path) -> None:
    data = write_dataset(tmp_path, GOOD)
    text = gzip.decompress(data.vcf.read_bytes())
    bcf = write_vcf(tmp_path, "BCF\2\2 and so on\n", name="other").read_bytes()
    for content in (text, gzip.compress(text), b"", b"PK\3\4", bcf):
        data.vcf.write_bytes(content)
        assert _refusal(data, tmp_path / "snapshot").reason is Reason.VCF_UNREADABLE


@pytest.mark.parametrize(
    "text",
    [
        "##fileformat=VCFv4.2\n",
        "##fileformat=VCFv4.2\n#CHROM\tPOS\n1\t2\n",
        "##fileformat=VCFv4.2\n##contig=<ID=1,length=249250621>",
        header().replace("##FORMAT=<ID=GT,Number=1", "##FORMAT=<ID=GT,Number=").replace("#CHROM\tPOS", "#CHROM POS"),
    ],
)
def test_a_vcf_with_a_broken_header_is_refused(tmp_path: Path, text: str) -> None:
    samples = write_samples(tmp_path, dict(zip(PEOPLE, SEXES, strict=True)))
    assert _refusal(Dataset(write_vcf(tmp_path, text), samples), tmp_path / "snapshot").reason is Reason.VCF_UNREADABLE


def test_a_vcf_that_is_not_there_is_refused(tmp_path: Path) -> None:
    data = Dataset(tmp_path / "none.vcf.gz", write_samples(tmp_path, {"anna": "female"}))
    assert _refusal(data, tmp_path / "snapshot").reason is Reason.VCF_UNREADABLE


def test_another_build_than_the_vcfs_is_refused(tmp_path: Path) -> None:
    data = write_dataset(tmp_path, GOOD)
    assert _refusal(data, tmp_path / "snapshot", "GRCh38").reason is Reason.BUILD_MISMATCH


def test_a_vcf_that_does_not_tell_its_build_needs_it_said(tmp_path: Path) -> None:
    data = write_dataset(tmp_path, GOOD)
    write_vcf(tmp_path, header(contigs={"1": None, "2": None}) + "\n".join(GOOD) + "\n")
    assert _refusal(data, tmp_path / "snapshot").reason is Reason.BUILD_UNKNOWN
    assert len(_import(data, tmp_path / "snapshot", "GRCh38")) == 2


def test_a_samples_file_of_other_people_leaves_nothing_behind(tmp_path: Path) -> None:
    data = write_dataset(tmp_path, GOOD)
    write_samples(tmp_path, dict(zip(PEOPLE[:3], SEXES, strict=False)))
    assert _refusal(data, tmp_path / "snapshot").reason is Reason.SAMPLES_MISMATCH


def test_a_folder_that_is_there_already_is_not_touched(tmp_path: Path) -> None:
    data, target = write_dataset(tmp_path, GOOD), tmp_path / "snapshot"
    target.mkdir()
    (target / "mine").write_text("mine")
    with pytest.raises(HansaError) as refusal:
        import_dataset(data.vcf, data.samples, build=None, target=target)
    assert refusal.value.reason is Reason.FILE_INVALID
    assert (target / "mine").read_text() == "mine"


def test_htslib_says_nothing_of_a_bad_file_on_stderr(tmp_path: Path) -> None:
    data = write_dataset(tmp_path, [record("1:1000", "A", "C", ("anna/0", "0/1", "0/0", "0/0"))])
    program = (
        "import sys, pathlib, logging, structlog\n"
        "from node_agent.staging.importer import import_dataset\n"
        "try: import_dataset(*map(pathlib.Path, sys.argv[1:3]), build=None, target=pathlib.Path(sys.argv[3]))\n"
        "except Exception as error: print(error.reason)\n"
    )
    arguments = [str(data.vcf), str(data.samples), str(tmp_path / "snapshot")]
    ended = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["VCF_RECORD_INVALID"]
    assert ended.stderr == ""


@pytest.mark.parametrize("name", SNAPSHOT_FILES)
def test_a_snapshot_of_which_a_byte_has_changed_is_refused(tmp_path: Path, name: str) -> None:
    _import(write_dataset(tmp_path, GOOD), tmp_path / "snapshot")
    path = tmp_path / "snapshot" / name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
    with pytest.raises(HansaError) as refusal:
        verify_snapshot(tmp_path / "snapshot")
    assert refusal.value.reason is Reason.DATASET_INVALID


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"people":4', b'"people":5'),
        (b'"v":1', b'"v":2'),
        (b'"variants":2', b'"variants":"2"'),
        (b'"v":1', b'"v":1,"x":1'),
        (b"genotypes.pgen", b"../../../pgen"),
        (b"}", b""),
    ],
)
def test_a_snapshot_whose_record_is_not_valid_is_refused(tmp_path: Path, old: bytes, new: bytes) -> None:
    _import(write_dataset(tmp_path, GOOD), tmp_path / "snapshot")
    path = tmp_path / "snapshot" / SNAPSHOT_FILE
    path.chmod(0o644)
    path.write_bytes(path.read_bytes().replace(old, new, 1))
    for read in (read_snapshot, verify_snapshot):
        with pytest.raises(HansaError) as refusal:
            read(tmp_path / "snapshot")
        assert refusal.value.reason is Reason.DATASET_INVALID


def test_a_snapshot_with_a_stranger_or_a_link_in_it_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "snapshot"
    _import(write_dataset(tmp_path, GOOD), target)
    (target / "extra").write_text("")
    with pytest.raises(HansaError):
        verify_snapshot(target)
    (target / "extra").unlink()
    (target / PVAR).rename(tmp_path / "elsewhere")
    (target / PVAR).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(HansaError):
        verify_snapshot(target)
