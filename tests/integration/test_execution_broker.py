"""The agent's own broker: a real redis-server."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from kombu import Message
from kombu.transport.redis import Channel

from node_agent.execution.broker import EmbeddedBroker
from node_agent.execution.celery_app import enqueue_run, make_app, waiting_runs
from node_agent.execution.deliveries import forget_what_redis_did_not_hear
from tests.support.execution_cluster import node_folder


@pytest.fixture
async def broker() -> AsyncIterator[EmbeddedBroker]:
    with node_folder() as state:
        started = EmbeddedBroker(state / "broker")
        await started.start()
        yield started
        await started.stop()


def _client(broker: EmbeddedBroker) -> redis.Redis:
    return redis.Redis.from_url(broker.url.replace("redis+socket", "unix").replace("?virtual_host=0", ""))


def _ask(broker: EmbeddedBroker, section: str, name: str) -> int:
    with _client(broker) as client:
        return int(client.info(section)[name])


async def test_the_broker_has_no_port_and_its_socket_is_private(broker: EmbeddedBroker) -> None:
    with _client(broker) as client:
        settings = client.config_get("*")
    assert settings["port"] == "0"
    assert settings["appendonly"] == "yes"
    path = broker.url.removeprefix("redis+socket://").partition("?")[0]
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600  # noqa: PTH116


async def test_a_broker_that_a_killed_agent_left_is_adopted_and_stopped(broker: EmbeddedBroker) -> None:
    pid = _ask(broker, "server", "process_id")
    folder = Path(broker.url.removeprefix("redis+socket://").partition("?")[0]).parent
    heir = EmbeddedBroker(folder)
    await heir.start()
    assert _ask(heir, "server", "process_id") == pid
    await broker.stop()
    await heir.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_broker_that_died_is_started_again_with_what_it_held(broker: EmbeddedBroker) -> None:
    with _client(broker) as client:
        client.set("message", "kept")
        pid = _ask(broker, "server", "process_id")
        os.kill(pid, signal.SIGKILL)
        broker.ensure_running()
        assert client.get("message") == b"kept"
    assert _ask(broker, "server", "process_id") != pid


async def test_stopping_twice_is_stopping_once(broker: EmbeddedBroker) -> None:
    await broker.stop()
    await broker.stop()


async def test_a_stale_pid_file_of_somebody_elses_process_is_not_believed(broker: EmbeddedBroker) -> None:
    folder = Path(broker.url.removeprefix("redis+socket://").partition("?")[0]).parent
    await broker.stop()
    (folder / "redis.pid").write_text(str(os.getpid()))
    await broker.start()
    assert _ask(broker, "server", "process_id") != os.getpid()


async def test_it_tells_how_many_messages_wait_also_when_it_has_forgotten_them_or_is_away(
    broker: EmbeddedBroker,
) -> None:
    app = make_app(broker.url)
    assert waiting_runs(app) == 0
    for _ in range(2):
        enqueue_run(app, "0" * 32)
    assert waiting_runs(app) == 2
    with _client(broker) as client:
        client.flushall()
    assert waiting_runs(app) == 0
    enqueue_run(app, "0" * 32)
    assert waiting_runs(app) == 1
    await broker.stop()
    assert waiting_runs(app) is None
    app.close()


async def test_a_file_that_redis_cannot_read_is_put_aside_since_nothing_of_it_is_needed(
    broker: EmbeddedBroker,
) -> None:
    folder = Path(broker.url.removeprefix("redis+socket://").partition("?")[0]).parent
    with _client(broker) as client:
        client.set("message", "lost")
    await broker.stop()
    for path in (folder / "appendonlydir").iterdir():
        path.write_bytes(b"no such thing" * 100)
    await broker.start()
    with _client(broker) as client:
        assert client.get("message") is None
    assert [path.name for path in folder.glob("appendonlydir.*")] == ["appendonlydir.unreadable"]


@pytest.mark.parametrize("end", [Message.ack, Message.reject])
def test_a_message_whose_end_the_broker_did_not_hear_of_takes_no_slot(
    monkeypatch: pytest.MonkeyPatch, end: Callable[[Message], None]
) -> None:
    monkeypatch.setattr(Channel, "QoS", Channel.QoS)
    forget_what_redis_did_not_hear()
    taken: list[Message] = []
    with node_folder() as state:
        broker = EmbeddedBroker(state / "broker")
        broker.ensure_running()
        app = make_app(broker.url)
        enqueue_run(app, "taken")
        with app.connection_for_read() as connection:
            channel: Any = connection.default_channel
            consumer = app.amqp.TaskConsumer(channel)
            consumer.qos(prefetch_count=1)
            consumer.on_message = taken.append
            consumer.consume()
            connection.drain_events(timeout=60)
            assert not channel.qos.can_consume()
            broker.shut_down()
            with pytest.raises(connection.connection_errors):
                end(taken[0])
            assert channel.qos.can_consume()
            # It listens again, and so finds that its connection is broken: Celery then makes a new one.
            with pytest.raises(connection.connection_errors):
                connection.drain_events(timeout=60)
        app.close()
