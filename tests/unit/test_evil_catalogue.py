"""What a researcher signs, whatever the coordinator says of the datasets that there are."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta

from hansa.contract.errors import HansaError
from hansa.sdk.request import Fresh, JobRequest, build_job
from hansa.v1 import catalogue_service_pb2 as wire
from tests.support.catalogue_answers import FILES, dataset
from tests.support.mutants import Guide, message_mutants
from tests.support.tally import report
from tests.support.trust_world import PROJECT, build_trust_world

ASKED = ("FI-lct", "ES-lct")
PLACES = {"FI": "FI-lct", "ES": "ES-lct", "IT": "IT-lct"}


def test_evil_every_field_of_a_list_of_datasets_changed_once_makes_no_other_job() -> None:
    """The job names the datasets that were asked for, where the project allows them, or there is no job."""
    world = build_trust_world(FILES, datasets=PLACES)
    view = world.view
    request = JobRequest(
        analysis="allele-frequency",
        project=PROJECT,
        datasets=ASKED,
        parameters={"variants": "15:28365618:A:G"},
        lifetime=timedelta(hours=1),
    )
    fresh = Fresh(submitter="ada", now=world.now, job_id="01990000-0000-7000-8000-000000000001", nonce="0" * 32)
    honest = wire.ListDatasetsResponse(
        datasets=[dataset("FI-lct", "FI"), dataset("ES-lct", "ES"), dataset("IT-lct", "IT")]
    )
    true = build_job(request, view, honest.datasets, fresh=fresh)
    guide = Guide(others={"hansa.v1.Dataset.node": "IT", "hansa.v1.Dataset.dataset_id": "IT-lct"})
    outcomes: Counter[str] = Counter()

    for mutant in message_mutants(honest, guide):
        try:
            spec = build_job(request, view, mutant.of(honest).datasets, fresh=fresh)
        except HansaError as error:
            outcomes[error.reason.value] += 1
            continue
        outcomes["signed"] += 1
        assert [(ref.node, ref.dataset) for ref in spec.datasets] == [("FI", "FI-lct"), ("ES", "ES-lct")], mutant.id
        # A snapshot that no node has makes a job that no node takes; nothing else may differ.
        assert spec.model_copy(update={"datasets": true.datasets}) == true

    report("a list of datasets, each field changed once", outcomes)
    assert sum(outcomes.values()) >= 25
