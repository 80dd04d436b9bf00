"""A whole federation on one machine: `make up`, `make down`, `make node-restart`.

A coordinator and its nodes are separate processes with separate state folders,
brokers and workers. They are set up by the public commands alone.
"""

from __future__ import annotations

import argparse
import shutil
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from deploy.local import demo_data
from deploy.local.cast import OPERATOR, holder_of
from deploy.local.ceremony import PROJECT, Ceremony
from deploy.local.commands import (
    ANALYSIS_FOLDER,
    CommandError,
    Dataset,
    NodeOperator,
    People,
    environment,
    init_coordinator,
)
from deploy.local.layout import REPOSITORY, Layout, LocalFederationError, NodeLayout, node_names
from deploy.local.processes import Daemon, stop, sweep, wait_until

DEFAULT_NODES: Final = "GB,FI,ES,IT"
SAMPLES: Final = "samples.tsv"

_READY_SECONDS: Final = 60.0
_POLL_SECONDS: Final = 0.3

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Wish:
    """What `make up` was asked for; None where the default is meant.

    ``analyses`` are folders: data holders approve the first of them for the
    whole project, the others job by job. ``database`` is the coordinator's.
    """

    nodes: str | None = None
    data: Path | None = None
    analyses: tuple[Path, ...] = (ANALYSIS_FOLDER,)
    database: str = ""


def up(layout: Layout, wish: Wish, say: Say) -> None:
    """Start the federation in ``layout``: a new one, or the stopped one that is there.

    Raises:
        LocalFederationError: it cannot be started. Nothing of it runs then, and
            of a new one only the logs are left.
    """
    if layout.running():
        raise LocalFederationError(f"A federation runs in {layout.root}; stop it with `make down DIR={layout.root}`.")
    sweep(layout.root)
    if layout.record.exists():
        _start_again(layout, wish, say)
        return
    _refuse_foreign(layout)
    names = node_names(wish.nodes or DEFAULT_NODES)
    datasets = find_datasets(wish.data or demo_data.prepare(REPOSITORY / ".cache"), names, say)
    layout.root.mkdir(parents=True, exist_ok=True)
    try:
        _set_up(layout, wish, datasets, say)
    except BaseException:
        down(layout)
        _keep_only_logs(layout)
        raise


def _refuse_foreign(layout: Layout) -> None:
    if layout.root.exists() and not layout.root.is_dir():
        raise LocalFederationError(f"{layout.root} is not a folder.")
    for path in layout.owned:
        if path.exists():
            raise LocalFederationError(f"{path} is in the way; remove it or choose another DIR.")


def _keep_only_logs(layout: Layout) -> None:
    logs = layout.root / "failed-logs"
    for node in layout.present_nodes():
        for log in node.folder.glob("*.log"):
            logs.mkdir(exist_ok=True)
            shutil.copyfile(log, logs / f"{node.name}-{log.name}")
    for path in layout.owned:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _set_up(layout: Layout, wish: Wish, datasets: Mapping[str, Sequence[Dataset]], say: Say) -> None:
    people, ceremony, names = People(layout), Ceremony(layout), tuple(datasets)
    with ThreadPoolExecutor(max_workers=len(names)) as pool:
        say(f"Making the nodes {', '.join(names)}: each has its own state, policy, broker and worker.")
        made = [pool.submit(NodeOperator(layout.node(name)).make, wish.analyses) for name in names]
        say("The key ceremony: two of three national operators sign who belongs to the federation and what may run.")
        ceremony.create_keys(names)
        scope = [f"{node}/{item.name}" for node, found in datasets.items() for item in found]
        ceremony.found(names, scope, wish.analyses)
        say("Starting the coordinator. It will see questions and released counts, never a genotype.")
        init_coordinator(layout, free_ports(), wish.database)
        people.write_profiles()
        _start_coordinator(layout, people)
        for job in made:
            job.result()
        say("Enrolling the nodes: each makes its own keys, dials out to the coordinator, and takes its own data in.")
        joined = [pool.submit(_join, layout.node(name), people, datasets[name]) for name in names]
        for job in joined:
            job.result()
    say("The national operators sign the nodes' keys into the directory; each data holder approves the analysis.")
    ceremony.add_nodes(names)
    ceremony.publish(str(layout.profile(OPERATOR)))
    _wait_for_federation(layout, people, names, {item.name for found in datasets.values() for item in found})
    layout.write_env()
    layout.write_record(names)


def _start_coordinator(layout: Layout, people: People) -> None:
    _start(layout, layout.coordinator)
    _await(layout.coordinator, "The coordinator", lambda: _works(people.nodes))


def _join(node: NodeLayout, people: People, datasets: Sequence[Dataset]) -> None:
    operator = NodeOperator(node)
    fingerprint = operator.enrol(people.invite(node.name))
    people.confirm(node.name, fingerprint)
    _start_node(node)
    for dataset in datasets:
        operator.add_dataset(dataset)
    keys = Layout(node.folder.parents[1])
    holder = holder_of(node.name)
    operator.pin_holder(keys.public_key(holder))
    if datasets:
        operator.approve([item.name for item in datasets], project=PROJECT, key=keys.key(holder))


def _start_node(node: NodeLayout) -> None:
    layout = Layout(node.folder.parents[1])
    operator = NodeOperator(node)
    if not node.agent.running():
        _start(layout, node.agent)
        _await(node.agent, f"The agent of {node.name}", lambda: _works(operator.status))
    if not node.worker.running():
        _start(layout, node.worker)


def _start_again(layout: Layout, wish: Wish, say: Say) -> None:
    nodes = layout.nodes()
    if wish.data or (wish.nodes and set(node_names(wish.nodes)) != {node.name for node in nodes}):
        raise LocalFederationError(
            f"{layout.root} holds a stopped federation of {', '.join(node.name for node in nodes)}; start it "
            "without NODES and DATA, or choose another DIR."
        )
    say(f"Starting the federation in {layout.root} again, with its state.")
    people = People(layout)
    try:
        _start_coordinator(layout, people)
        with ThreadPoolExecutor(max_workers=len(nodes)) as pool:
            list(pool.map(_start_node, nodes))
        _wait_for_federation(layout, people, [node.name for node in nodes], set())
    except BaseException:
        down(layout)
        raise


def _wait_for_federation(layout: Layout, people: People, names: Sequence[str], datasets: set[str]) -> None:
    def complete() -> bool:
        connected = {node["node"] for node in people.nodes() if node["connected"]}
        known = {item["dataset"] for item in people.datasets()}
        return (
            connected >= set(names) and known >= datasets and all(NodeOperator(layout.node(n)).trusted() for n in names)
        )

    if not wait_until(complete, _READY_SECONDS, _POLL_SECONDS):
        logs = f"{layout.root}/nodes/*/agent.log"
        raise LocalFederationError(f"Not all nodes connected within {_READY_SECONDS:.0f} s; see {logs}.")


def _start(layout: Layout, daemon: Daemon) -> None:
    # A daemon's log is its operator's: a fault of ours may be told there in full.
    daemon.start(layout.root, {**environment(), "HANSA_DEBUG": "1"})


def _await(daemon: Daemon, who: str, ready: Callable[[], bool]) -> None:
    ended = False

    def settled() -> bool:
        nonlocal ended
        ended = daemon.running() is None
        return ended or ready()

    if not wait_until(settled, _READY_SECONDS, _POLL_SECONDS) or ended:
        raise LocalFederationError(f"{who} did not start. Its log ends:\n{daemon.log_tail()}")


def _works(command: Callable[[], object]) -> bool:
    try:
        command()
    except CommandError:
        return False
    return True


def down(layout: Layout) -> None:
    """Stop what was started in ``layout``, and nothing else; the state stays."""
    nodes = layout.present_nodes()
    stop(node.worker for node in nodes)
    stop(node.agent for node in nodes)
    stop([layout.coordinator])
    sweep(layout.root)


def node_restart(layout: Layout, name: str) -> None:
    """Start the agent of a node again, and its worker, where they do not run.

    Raises:
        LocalFederationError: no such node, or it does not start.
    """
    known = {node.name: node for node in layout.nodes()}
    if name not in known:
        raise LocalFederationError(f"NODE={name!r}: {layout.root} has the nodes {', '.join(known)}.")
    _start_node(known[name])


def find_datasets(data: Path, names: Sequence[str], say: Say) -> dict[str, list[Dataset]]:
    """Return the datasets of each node: ``data/<NODE>/<name>.vcf.gz`` with ``samples.tsv``.

    Raises:
        LocalFederationError: no node has a VCF, or a folder lacks its samples file.
    """
    found: dict[str, list[Dataset]] = {}
    for name in names:
        folder = data.absolute() / name
        vcfs = sorted(folder.glob("*.vcf.gz"))
        if vcfs and not (folder / SAMPLES).is_file():
            raise LocalFederationError(f"{folder} has no {SAMPLES}.")
        if not vcfs:
            say(f"{folder} has no *.vcf.gz: the node {name} starts without data.")
        found[name] = [Dataset(f"{name}-{vcf.name[:-7]}", vcf, folder / SAMPLES) for vcf in vcfs]
    if not any(found.values()):
        raise LocalFederationError(f"{data} has no <COUNTRY>/<name>.vcf.gz for any of {', '.join(names)}.")
    return found


def free_ports() -> tuple[int, int, int]:
    """Return three different ports that are free on the loopback now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(3)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        first, second, third = (int(each.getsockname()[1]) for each in sockets)
    return first, second, third


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="federation", description="A federation on this machine.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("up", "down", "node-restart"):
        verbs.add_parser(verb).add_argument("--dir", type=Path, default=Path(".hansa"))
    verbs.choices["up"].add_argument("--nodes")
    verbs.choices["up"].add_argument("--data", type=Path)
    verbs.choices["node-restart"].add_argument("--node", required=True)
    return parser.parse_args()


def _act(arguments: argparse.Namespace) -> None:
    layout = Layout(arguments.dir.absolute())
    if arguments.verb == "up":
        up(layout, Wish(arguments.nodes, arguments.data), print)
        print(f"The federation runs. Next: . {layout.env}; hansa nodes list; stop it with `make down`.")
    elif arguments.verb == "down":
        down(layout)
    else:
        node_restart(layout, arguments.node)


def main() -> int:
    """Do what the command line says; return the exit status."""
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # a stream of text
    try:
        _act(_arguments())
    except (LocalFederationError, demo_data.DemoDataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
