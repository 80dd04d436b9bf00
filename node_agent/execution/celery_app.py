"""The Celery application of a node: how messages are sent and taken.

A message carries ids only and decides nothing. It may be lost (the agent sends
it again) or come twice (the claim refuses the second): acknowledging late or
early is not what keeps a run safe.
"""

from __future__ import annotations

from typing import Any, Final

import structlog
from amqp.exceptions import ChannelError
from celery import Celery
from kombu import Exchange, Queue

RUN_TASK: Final = "hansa.run"
RULE_TASK: Final = "hansa.rule"
RUN_QUEUE: Final = "runs"
RULE_QUEUE: Final = "rules"

_PROBE_SECONDS: Final = 4
_log = structlog.get_logger(__name__)
_MONTH_SECONDS: Final = 31 * 24 * 3600


def make_app(broker_url: str) -> Celery:
    """Return a Celery application on ``broker_url``. Connects with the first message."""
    app = Celery("hansa", broker=broker_url, set_as_current=False)
    is_rabbit = broker_url.startswith("amqp")
    # RabbitMQ closes the channel of a consumer that has not acknowledged for half an hour.
    arguments = {"x-consumer-timeout": _MONTH_SECONDS * 1000} if is_rabbit else None
    exchange = Exchange("hansa", type="direct", durable=True)
    app.conf.update(
        task_queues=[
            Queue(name, exchange, routing_key=name, durable=True, queue_arguments=arguments)
            for name in (RUN_QUEUE, RULE_QUEUE)
        ],
        task_routes={RUN_TASK: {"queue": RUN_QUEUE}, RULE_TASK: {"queue": RULE_QUEUE}},
        broker_transport_options=_transport_options(is_rabbit=is_rabbit),
        accept_content=["json"],
        result_accept_content=["json"],
        task_serializer="json",
        event_serializer="json",
        result_serializer="json",
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_ignore_result=True,
        task_publish_retry_policy={"max_retries": 2, "interval_start": 0.1, "interval_step": 0.2},
        worker_prefetch_multiplier=1,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_connection_timeout=4,
    )
    return app


def _transport_options(*, is_rabbit: bool) -> dict[str, Any]:
    if is_rabbit:
        return {"confirm_publish": True}
    # Redelivery after a timeout would only send what the agent sends again anyway, and to no effect.
    return {"visibility_timeout": _MONTH_SECONDS}


def reach_broker(app: Celery) -> None:
    """Return if the broker answers. Blocks for a few seconds at most; thread-safe.

    Raises:
        Exception: it does not, in the words of its library.
    """
    with app.connection_for_read() as connection:
        connection.ensure_connection(max_retries=1, timeout=_PROBE_SECONDS)


def enqueue_run(app: Celery, run_id: str) -> None:
    """Send the message that makes a worker claim ``run_id``. Blocks; thread-safe.

    Raises:
        kombu.exceptions.OperationalError: the broker is away.
    """
    app.send_task(RUN_TASK, args=[run_id], queue=RUN_QUEUE)


def waiting_runs(app: Celery) -> int | None:
    """Return how many messages about runs no worker has taken yet; None if the broker does not tell. Blocks."""
    try:
        # A connection of its own: a broker that was restarted leaves the pooled ones half dead.
        with app.connection_for_read(connect_timeout=2) as connection, connection.channel() as opened:
            channel: Any = opened  # what it can do depends on the transport
            return int(channel.queue_declare(RUN_QUEUE, passive=True).message_count)
    except ChannelError:
        # There is no such queue: with Redis an empty one is none.
        return 0
    except Exception:
        # Whatever the transport raises when the broker is away; sending will tell more.
        _log.info("broker_not_asked", exc_info=True)
        return None


def enqueue_rule(app: Celery, run_id: str, execution: int, number: int) -> None:
    """Send the message that makes a worker run one rule's job. Blocks; thread-safe.

    Raises:
        kombu.exceptions.OperationalError: the broker is away.
    """
    app.send_task(RULE_TASK, args=[run_id, execution, number], queue=RULE_QUEUE)
