"""The corpus of bad summaries, U1 to U12: from what a run writes to what may leave."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from hansa.contract.summary import Summary
from node_agent.executions import Finish, Outcome
from node_agent.store.models import DatasetRow, SummaryRow
from tests.support.agent import Bench, collected, job, make_bench
from tests.support.corpus import Entry, Memory, entries

pytestmark = pytest.mark.slow

VARIANT = "15:28365618:A:G"
NAMES = ("people", "an", "ac", "carriers", "others")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = make_bench(tmp_path)
    yield made
    made.database.close()


@pytest.mark.parametrize("entry", entries("summaries"))
async def test_a_bad_summary_ends_as_it_must_and_nothing_of_it_leaves(bench: Bench, entry: Entry) -> None:
    if "cohort" in entry.input:
        await bench.database.run(lambda session: shrink(session.get_one(DatasetRow, "FI-lct"), entry.input["cohort"]))
    parameters = {"variants": VARIANT, **({"stratify": "sex"} if "strata" in entry.input else {})}
    run = await bench.running(job(parameters=parameters))
    text, memory = written(entry.input), Memory()
    finish = Finish(run_id=run.run_id, execution=run.execution, outcome=Outcome.SUMMARY, summary=text)
    await bench.executions.finish(finish)
    memory.check()
    run = await bench.run(run.run_id)
    row = await bench.database.run(lambda session: session.get(SummaryRow, run.run_id))
    assert run.state == entry.expect["state"]
    assert run.reason == entry.expect.get("reason", "")
    if "cells" in entry.expect:
        assert row is not None
        assert figures(row.summary) == entry.expect["cells"]
    else:
        assert row is None


def figures(summary: bytes) -> int:
    values = json.loads(summary)["arrays"]["ac"]["values"]
    return sum(value is not None for value in values)


def shrink(row: DatasetRow, people: int) -> None:
    row.info = {**row.info, "people": people, "people_by_sex": {"female": people, "male": 0, "unknown": 0}}


def written(recipe: Mapping[str, Any]) -> str:
    if "raw" in recipe:
        return str(recipe["raw"])
    if "strata" in recipe:
        return stratified(recipe["strata"])
    value = json.loads(collected(**recipe.get("counts", {})))
    for path, new in recipe.get("set", {}).items():
        put(value, path.split("."), new)
    if "rsids" in recipe:
        value["notes"] = {"variant": {"rsid": ["rs1"] * recipe["rsids"]}}
    if "variants" in recipe:
        widen(value, recipe["variants"])
    text = json.dumps(value)
    return text.replace('"values": [99]', f'"values": [{recipe["token"]}]', 1) if "token" in recipe else text


def put(value: Any, path: list[str], new: Any) -> None:
    *folders, last = path
    for folder in folders:
        value = value[folder]
    value[last] = new


def widen(value: Any, count: int) -> None:
    value["axes"]["variant"] = [f"1:{number + 1}:A:C" for number in range(count)]
    for array in value["arrays"].values():
        array["values"] = array["values"] * count


def stratified(strata: Mapping[str, list[int]]) -> str:
    rows = {"all": [sum(column) for column in zip(*strata.values(), strict=True)], **strata}
    cells = {name: [counts(*row)[name] for row in rows.values()] for name in NAMES}
    arrays = {
        name: {"dtype": "int64", "axes": ["variant", "stratum"], "merge": "sum", "values": values}
        for name, values in cells.items()
    }
    return json.dumps({"v": 1, "axes": {"variant": [VARIANT], "stratum": list(rows)}, "notes": {}, "arrays": arrays})


def counts(people: int, carriers: int, others: int) -> dict[str, int]:
    ac = carriers + people - others
    return {"people": people, "an": 2 * people, "ac": ac, "carriers": carriers, "others": others}


def test_no_word_of_a_summary_is_a_persons() -> None:
    # What a summary is made of: labels of closed kinds, numbers, rs ids. A text field would be a way out.
    assert set(Summary.__dataclass_fields__) == {"axes", "arrays", "notes"}
