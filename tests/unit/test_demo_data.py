"""The demo data's split by country, on small panels made here."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.local.demo_data import Panel, Person, country_vcf, read_panel, read_people
from deploy.local.federation import find_datasets
from deploy.local.layout import LocalFederationError, node_names, shell_quoted

_HEAD = "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT"
_LINES = [
    "##fileformat=VCFv4.1",
    "##contig=<ID=1,assembly=b37,length=249250621>",
    "##contig=<ID=X,assembly=b37,length=155270560>",
    "##INFO=<ID=AC,Number=A,Type=Integer,Description=x>",
    f"{_HEAD}\tA1\tB1\tA2",
    "10\t5\trs3\tA\tG\t100\tPASS\tAC=3;AN=6\tGT\t0|1\t1|1\t0|0",
    "2\t9\trs2\tA\tG\t100\tPASS\tAC=2;AN=6\tGT\t1|1\t0|0\t0|0",
    "2\t7\trs1\tC\tT\t100\tPASS\tAC=1;AN=6\tGT\t0|0\t0|0\t0|1",
    "X\t7\trs9\tC\tT\t100\tPASS\tAC=1;AN=6\tGT\t0|0\t0|0\t0|1",
]
_PEOPLE = [
    "sample,rs1,population,superpopulation,gender",
    "A1,0,FIN,EUR,male",
    "B1,0,GBR,EUR,female",
    "A2,0,FIN,EUR,female",
]


def _records(panel: Panel, population: str) -> list[list[str]]:
    people = [person for person in read_people(_PEOPLE) if person.population == population]
    return [line.split("\t") for line in country_vcf(panel, people) if not line.startswith("##")]


def test_a_country_has_its_own_people_and_nobody_else() -> None:
    records = _records(read_panel(_LINES), "FIN")
    assert records[0][9:] == ["A1", "A2"]
    assert [record[9:] for record in records[1:]] == [["0|0", "0|1"], ["1|1", "0|0"], ["0|1", "0|0"]]


def test_the_records_are_autosomal_and_in_the_order_of_the_genome() -> None:
    assert [columns[2] for columns in read_panel(_LINES).records] == ["rs1", "rs2", "rs3"]


def test_no_count_of_the_whole_panel_is_left_in_a_country() -> None:
    text = "\n".join(country_vcf(read_panel(_LINES), [Person("B1", "female", "GBR")]))
    assert "AC" not in text
    assert "AN=" not in text


def test_only_contigs_that_can_hold_a_record_are_declared() -> None:
    assert read_panel(_LINES).contigs == (_LINES[1],)


def test_a_data_folder_becomes_one_dataset_for_each_vcf(tmp_path: Path) -> None:
    (tmp_path / "FI").mkdir()
    for name in ("lct.vcf.gz", "brca.vcf.gz", "lct.vcf.gz.tbi", "samples.tsv"):
        (tmp_path / "FI" / name).touch()
    said: list[str] = []
    found = find_datasets(tmp_path, ["FI", "GB"], said.append)
    assert [dataset.name for dataset in found["FI"]] == ["FI-brca", "FI-lct"]
    assert found["GB"] == []
    assert "GB" in said[0]


def test_a_data_folder_without_samples_or_without_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LocalFederationError, match="no <COUNTRY>"):
        find_datasets(tmp_path, ["FI"], lambda _: None)
    (tmp_path / "FI").mkdir()
    (tmp_path / "FI" / "lct.vcf.gz").touch()
    with pytest.raises(LocalFederationError, match="samples"):
        find_datasets(tmp_path, ["FI"], lambda _: None)


@pytest.mark.parametrize("text", ["", ",", "FI,FI", "fi", "FI,../x", "FI ES"])
def test_node_names_that_could_not_be_folders_or_nodes_are_refused(text: str) -> None:
    with pytest.raises(LocalFederationError):
        node_names(text)


def test_the_environment_file_survives_a_folder_with_spaces_and_quotes() -> None:
    assert shell_quoted("/a b/it's") == "'/a b/it'\\''s'"
