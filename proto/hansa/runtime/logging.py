"""Structured logs: one JSON object a line, with secrets struck out.

Events are constant snake_case names with fields. What an event is about has the
same names in every process: ``job_id``, ``run_id``, ``node``, ``execution``,
``epoch``; ``about`` gives them to all that is logged within. Logs stay on the machine that
wrote them; the redaction below is the second wall, the first is not to log a
secret or a data value at all.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final, TypeAlias

import structlog

_SECRET_WORDS: Final = ("token", "secret", "password", "private", "passport", "signature", "csr")
_STRUCK: Final = "[struck out]"

Event: TypeAlias = Mapping[str, Any]
_LISTENERS: Final[list[Callable[[Event], None]]] = []


@contextmanager
def listening(hear: Callable[[Event], None]) -> Iterator[None]:
    """Tell ``hear`` of every event, with secrets struck out, until the context ends; it must not log or block."""
    _LISTENERS.append(hear)
    try:
        yield
    finally:
        _LISTENERS.remove(hear)


def about(**fields: str | int) -> AbstractContextManager[None]:
    """Give ``fields`` to every event that is logged in the context, and in the tasks that it starts."""
    return structlog.contextvars.bound_contextvars(**fields)


def remember(**fields: str | int) -> None:
    """Give ``fields`` to every event that the present task logs from now on."""
    structlog.contextvars.bind_contextvars(**fields)


def _tell(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for hear in tuple(_LISTENERS):
        hear(event)
    return event


def strike_secrets(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replace the value of every field whose name speaks of a secret."""
    for name in event:
        if any(word in name.lower() for word in _SECRET_WORDS):
            event[name] = _STRUCK
    return event


def set_up_logging(process: str, *, level: int = logging.INFO, node: str = "") -> None:
    """Send structlog's and the standard library's events to stderr as JSON lines. May be called again.

    Args:
        process: the name of the process, a field of every line.
        level: the lowest level that is written.
        node: whose process it is, a field of every line where it is given.
    """
    names = {"process": process, **({"node": node} if node else {})}

    def name(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        # Not a context variable: a thread begins without any.
        for key, value in names.items():
            event.setdefault(key, value)
        return event

    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        name,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        strike_secrets,
    ]
    renderer: list[structlog.typing.Processor] = [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        structlog.processors.format_exc_info,
        structlog.processors.JSONRenderer(),
    ]
    formatter = structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=renderer)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    structlog.configure(
        processors=[*shared, _tell, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        # Not cached: a logger that was used before would keep to the set-up of that time.
        cache_logger_on_first_use=False,
    )
