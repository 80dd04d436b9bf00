import pytest

from hansa.contract.errors import HansaError, Reason
from hansa.sdk.result import parse_result
from tests.support.frequency_results import RS, VARIANT, encoded, two_countries_and_one_suppressed


def test_a_result_is_read_as_the_coordinator_writes_it() -> None:
    result = parse_result(encoded(two_countries_and_one_suppressed(stratified=True)))
    (variant,) = result.variants
    assert (variant.title, variant.variant) == (RS, VARIANT)
    assert result.places == ("GB", "FI", "ES")
    gb, es = variant.countries["GB"], variant.countries["ES"]
    assert (gb.people, gb.ac, gb.an, gb.is_released) == (91, 113, 182, True)
    assert gb.strata["female"].ac == 57
    assert (es.ac, es.status, es.is_released) == (None, "suppressed", False)
    assert (variant.pooled.ac, variant.pooled.partial) == (294, True)


def test_a_key_that_a_newer_coordinator_adds_does_no_harm() -> None:
    document = two_countries_and_one_suppressed() | {"receipts": [1]}
    assert parse_result(encoded(document)).state == "COMPLETED"


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"job_id": 1}', b'{"a": NaN}', b"[" * 5000, b"\xff"])
def test_what_is_no_result_is_refused(data: bytes) -> None:
    with pytest.raises(HansaError) as caught:
        parse_result(data)
    assert caught.value.reason is Reason.MALFORMED
