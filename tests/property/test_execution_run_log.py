"""The bounded log keeps the beginning and the end of whatever was written."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from node_agent.execution.run_log import RunLog


@given(parts=st.lists(st.binary(max_size=70).map(lambda part: part.replace(b"\n", b" ")), max_size=30))
def test_a_log_holds_the_first_and_the_last_bytes_and_counts_the_rest(parts: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log"
        with RunLog(path, 64) as log:
            for part in parts:
                log.write(part)
        kept = path.read_bytes()
    whole = b"".join(parts)
    if len(whole) <= 64:
        assert kept == whole
        return
    match = re.fullmatch(rb"(.{32})\n\[\xe2\x80\xa6 (\d+) bytes discarded \xe2\x80\xa6\]\n(.{32})", kept, re.DOTALL)
    assert match is not None
    assert match[1] == whole[:32]
    assert match[3] == whole[-32:]
    assert int(match[2]) == len(whole) - 64
