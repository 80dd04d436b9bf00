"""Reads a daemon's metrics as Prometheus does."""

from __future__ import annotations

import http.client

from prometheus_client.parser import text_string_to_metric_families

PATIENCE_SECONDS = 20.0


class Page:
    """The samples of one scrape."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.samples = [one for family in text_string_to_metric_families(text) for one in family.samples]

    def value(self, name: str, **labels: str) -> float:
        """Return a sample's value; 0 where there is none."""
        return next((one.value for one in self.samples if one.name == name and one.labels == labels), 0.0)

    @property
    def label_values(self) -> set[str]:
        """Every value of every label, but the bounds of histograms."""
        return {value for one in self.samples for name, value in one.labels.items() if name != "le"}


def ask(port: int, *, host: str = "", method: str = "GET") -> tuple[int, str]:
    """Return status and body of a request to a port of this machine."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)
    try:
        connection.request(method, "/metrics", headers={"Host": host or f"127.0.0.1:{port}"})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def scrape(port: int) -> Page:
    """Return the page at ``port``."""
    status, text = ask(port)
    assert status == 200, text
    return Page(text)
