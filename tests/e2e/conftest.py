"""One federation for all tests of this folder: four countries with the demo data."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from deploy.local.demo_data import prepare
from deploy.local.layout import REPOSITORY
from tests.support.local_federation import COUNTRIES, Federation
from tests.support.loopback_capture import LoopbackCapture


@pytest.fixture(scope="session")
def demo_data() -> Path:
    """The folder of the demo data."""
    return prepare(REPOSITORY / ".cache")


@pytest.fixture(scope="session")
def federation(tmp_path_factory: pytest.TempPathFactory, demo_data: Path) -> Iterator[Federation]:
    """A running federation, with all that its people are shown recorded."""
    found = Federation.start(tmp_path_factory.mktemp("federation") / "hansa", ",".join(COUNTRIES))
    try:
        yield found
    finally:
        found.stop()


@pytest.fixture(scope="session")
def capture(federation: Federation) -> Iterator[LoopbackCapture | None]:
    """What passes the coordinator's ports; None where packets may not be read."""
    settings = tomllib.loads((federation.layout.coordinator_state / "coordinator.toml").read_text())
    ports = {int(value) for name, value in settings.items() if name.endswith("_port")}
    with ExitStack() as stack:
        try:
            yield stack.enter_context(LoopbackCapture(ports))
        except PermissionError:
            yield None


@pytest.fixture(scope="session")
def datasets() -> list[str]:
    """The options that name all four datasets."""
    return [word for country in COUNTRIES for word in ("--dataset", f"{country}-aisnp")]
