"""What runs inside the sandbox: Snakemake on the bundle, through its API.

This file is bound into the sandbox and imports nothing of Hansa but the
executor plugin that lies next to it there. It is started cold by an isolated
interpreter, or imported by the fork server and called in its children.

Not the command line of Snakemake: its rate limiter alone costs a second at
exit, and it would read profiles. The scheduler is the greedy one (the default
solver took 85 % of the time of a thousand jobs, measured).
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any, Final

PROGRAM_DIR: Final = "/opt/hansa/program"
_BUNDLE: Final = Path("/bundle")
_DATA: Final = Path("/data")
_WORK: Final = Path("/work")
# What Snakemake imports only when it comes to it, found by comparing sys.modules.
_IMPORTED_LATE: Final = (
    "getpass",
    "graphlib",
    "platformdirs.unix",
    "smart_open",
    "snakemake.api",
    "snakemake.executors.local",
    "snakemake.persistence.file",
    "snakemake.scheduling.greedy",
    "snakemake.storage",
    "snakemake_executor_plugin_hansa",
)


def run_workflow(snakefile: str, cores: int, channel_fd: int) -> bool:
    """Run the bundle's workflow in ``/work``; return whether it succeeded.

    Args:
        snakefile: its name within the bundle.
        cores: how many jobs may run at once.
        channel_fd: the socket to the runner, for the executor plugin.
    """
    from snakemake.api import SnakemakeApi
    from snakemake.scheduling.greedy import SchedulerSettings
    from snakemake.settings import types

    from snakemake_executor_plugin_hansa import ExecutorSettings

    greedy = SchedulerSettings()
    with SnakemakeApi(types.OutputSettings(nocolor=True, show_failed_logs=True, enable_file_logging=False)) as api:
        try:
            workflow = api.workflow(
                resource_settings=types.ResourceSettings(
                    cores=cores, nodes=cores, local_cores=cores, default_resources=None
                ),
                config_settings=types.ConfigSettings(config=_config()),
                storage_settings=types.StorageSettings(),
                snakefile=_BUNDLE / snakefile,
                workdir=_WORK,
            )
            dag = workflow.dag(types.DAGSettings(rerun_triggers=frozenset()))
            dag.execute_workflow(
                executor="hansa",
                executor_settings=ExecutorSettings(channel_fd=channel_fd),
                execution_settings=types.ExecutionSettings(latency_wait=0, lock=False, keep_metadata=False),
                remote_execution_settings=types.RemoteExecutionSettings(job_deploy_sources=False),
                scheduling_settings=types.SchedulingSettings(scheduler="greedy"),
                scheduler_settings=greedy,
                greedy_scheduler_settings=greedy,
            )
        except (Exception, SystemExit) as error:  # a Snakefile may raise anything
            api.print_exception(error)
            return False
    return True


def _config() -> dict[str, Any]:
    return {
        "bundle": str(_BUNDLE),
        "data": str(_DATA),
        "work": str(_WORK),
        "parameters": json.loads((_WORK / "params.json").read_bytes()),
    }


def warm_up() -> None:
    """Import what a run needs, so that a forked child need not; starts no thread."""
    for name in _IMPORTED_LATE:
        importlib.import_module(name)
    from snakemake_interface_executor_plugins.registry import ExecutorPluginRegistry
    from snakemake_interface_logger_plugins.registry import LoggerPluginRegistry
    from snakemake_interface_scheduler_plugins.registry import (  # type: ignore[import-untyped]
        SchedulerPluginRegistry,
    )
    from snakemake_interface_storage_plugins.registry import (  # type: ignore[import-untyped]
        StoragePluginRegistry,
    )

    # Each searches the whole of sys.path once per process.
    for registry in (ExecutorPluginRegistry, LoggerPluginRegistry, SchedulerPluginRegistry, StoragePluginRegistry):
        registry()


def main(argv: list[str]) -> int:
    """Run cold: ``inside.py SNAKEFILE CORES CHANNEL_FD``."""
    snakefile, cores, channel_fd = argv
    return 0 if run_workflow(snakefile, int(cores), int(channel_fd)) else 1


if __name__ == "__main__":
    sys.path.insert(0, PROGRAM_DIR)
    sys.exit(main(sys.argv[1:]))
