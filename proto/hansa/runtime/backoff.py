"""How long to wait before the next try."""

from __future__ import annotations

from collections.abc import Callable, Iterator


def delays(draw: Callable[[], float], *, first: float = 0.2, most: float = 5.0) -> Iterator[float]:
    """Yield seconds to wait, doubling up to ``most``, each scaled by a draw.

    Args:
        draw: a uniform number in [0, 1), for instance ``random.random``; each
            delay lies between half of its step and the whole of it, so that
            nodes that lost one coordinator do not all come back at once.
        first: the first step, in seconds.
        most: the largest step, in seconds.
    """
    step = first
    while True:
        yield step * (0.5 + draw() / 2)
        step = min(step * 2, most)
