"""What a worker still counts as its own of the messages that it has taken from Redis.

A worker takes as many messages as it has slots, and no more before it has
acknowledged one. kombu forgets a message only once Redis has heard of it:
acknowledge while Redis is away, and the slot is taken for good. With all slots
gone, the worker is connected and idle, and never asks for a message again.
"""

from __future__ import annotations

from kombu.transport import virtual
from kombu.transport.redis import Channel, QoS


class ForgettingQoS(QoS):
    """Gives the slot of a message back, whether or not Redis hears that the worker is done with it."""

    def ack(self, delivery_tag: str) -> None:
        """Acknowledge a message."""
        try:
            super().ack(delivery_tag)
        except Exception:
            self._forget(delivery_tag)
            raise

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Refuse a message."""
        try:
            super().reject(delivery_tag, requeue)
        except Exception:
            self._forget(delivery_tag)
            raise

    def _forget(self, delivery_tag: str) -> None:
        # The next look for messages finds the broken connection and makes a new one.
        virtual.QoS.ack(self, delivery_tag)


def forget_what_redis_did_not_hear() -> None:
    """Have all of this program's connections to Redis do so: nothing is lost, for a run is kept by its lease."""
    Channel.QoS = ForgettingQoS
