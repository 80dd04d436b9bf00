"""What a coordinator answers about an analysis and its datasets, for tests of clients."""

from __future__ import annotations

import json
from typing import Any

from hansa.contract.digests import bundle_digest
from hansa.v1 import types_pb2

ARRAY = {"dtype": "int64", "axes": ["variant"], "merge": "sum", "released": True}
MANIFEST: dict[str, Any] = {
    "name": "allele-frequency",
    "version": "1.0",
    "title": "Allele frequencies",
    "parameters": {
        "variants": {"type": "variants"},
        "region": {"type": "region"},
        "stratify": {"type": "choice", "choices": ["sex"]},
    },
    "one_of": [["variants", "region"]],
    "summary": {"axes": {"variant": {"labels": "variant"}}, "arrays": {"an": ARRAY}},
    "disclosure": "allele-counts",
}
FILES = {"manifest.json": json.dumps(MANIFEST).encode(), "Snakefile": b"rule all:\n"}
ANALYSIS = types_pb2.Analysis(
    name="allele-frequency", version="1.0", digest=bundle_digest(FILES), manifest=FILES["manifest.json"]
)


def dataset(id_: str, node: str, build: str = "GRCh37") -> types_pb2.Dataset:
    return types_pb2.Dataset(dataset_id=id_, node=node, build=build, snapshot=f"sha256:{'b' * 64}")
