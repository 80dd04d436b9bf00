"""A scripted coordinator of one node: what it says at an attach, what it has recorded, and what the node tells it."""

from __future__ import annotations

from dataclasses import dataclass, field

from sqlalchemy import select

from hansa.contract.envelope import from_json
from hansa.contract.outbox import Head
from hansa.v1 import node_service_pb2, types_pb2
from node_agent.link.attaching import answer_welcome
from node_agent.link.encoding import head_message
from node_agent.store.models import EventRow, RunRow
from node_agent.store.outbox import event_head
from tests.support.agent import Bench


@dataclass
class Coordinator:
    """What a coordinator says of itself at an attach, and how far it has come."""

    generation: int = 1
    events: Head = field(default_factory=Head)
    commands: Head = field(default_factory=Head)
    base: Head = field(default_factory=Head)

    def welcome(self) -> node_service_pb2.Welcome:
        """Return its answer to a hello."""
        return node_service_pb2.Welcome(
            epoch=1,
            nonce=b"n",
            store_uuid="coordinator",
            generation=self.generation,
            event_cursor=head_message(self.events),
            command_head=head_message(self.commands),
            command_base=head_message(self.base),
        )

    async def attach(self, bench: Bench) -> node_service_pb2.HeadProof:
        """Welcome the node; return its proof."""
        return await bench.database.run(lambda s: answer_welcome(s, self.welcome(), bench.reporter, bench.now))

    async def received_all(self, bench: Bench) -> None:
        """Have every event of the node's."""
        self.events = await bench.database.run(event_head)

    async def send(self, bench: Bench, body: node_service_pb2.CommandBody) -> None:
        """Send a command, which the node applies."""
        data = body.SerializeToString(deterministic=True)
        command = node_service_pb2.Command(epoch=1, seq=self.commands.seq + 1, prev_hash=self.commands.hash, body=data)
        await bench.database.run(lambda session: bench.commands.apply(session, command, bench.now))
        self.commands = self.base = self.commands.after(data)


async def told(bench: Bench, after: int = 0) -> list[node_service_pb2.EventBody]:
    """Return what the node has to tell after an event."""
    query = select(EventRow.body).where(EventRow.seq > after).order_by(EventRow.seq)
    bodies = await bench.database.run(lambda session: session.scalars(query).all())
    return [node_service_pb2.EventBody.FromString(body) for body in bodies]


def kinds(events: list[node_service_pb2.EventBody]) -> list[str | None]:
    """Return which events those are."""
    return [event.WhichOneof("body") for event in events]


def recorded(run: RunRow, state: str, statement: bytes | None = None, **fields: int) -> node_service_pb2.RecordedRun:
    """Return a run as a coordinator has recorded it."""
    made = node_service_pb2.RecordedRun(
        run_id=run.run_id,
        attempt=run.attempt,
        execution=fields.get("execution", run.execution),
        state=types_pb2.Run.State.Value(state),
    )
    if statement is not None:
        signed = from_json(statement)
        signature = types_pb2.Signature(key_id=signed.key_id, signature=signed.signature)
        envelope = types_pb2.Envelope(payload_type=signed.payload_type, payload=signed.payload, signatures=[signature])
        made.statement.CopyFrom(envelope)
    return made


def reconcile(
    *runs: node_service_pb2.RecordedRun, more: bool = False, generation: int = 2
) -> node_service_pb2.CommandBody:
    """Return the command that tells a restored node what is recorded of it."""
    told = node_service_pb2.Reconcile(runs=runs, more=more, generation=generation)
    return node_service_pb2.CommandBody(reconcile=told)
