"""Snakemake executor that hands each rule's command to Hansa's runner.

It runs inside the sandbox, next to the Snakefile, and is therefore as little
trusted as the Snakefile. All it can do is to ask, over the one descriptor that
the runner left it, that a shell command be run in another sandbox with the same
mounts, and to hear how that ended. Only ``shell:`` rules can be asked for: a
``run:`` block or a script is Python of this process and would not be fanned out.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field
from typing import Any

from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.executors.real import RealExecutor
from snakemake_interface_executor_plugins.settings import CommonSettings, ExecMode, ExecutorSettingsBase

from snakemake_executor_plugin_hansa.channel import Channel, RuleRequest

common_settings = CommonSettings(
    non_local_exec=True,
    implies_no_shared_fs=False,
    job_deploy_sources=False,
    auto_deploy_default_storage_provider=False,
    pass_envvar_declarations_to_cmd=False,
)


@dataclass
class ExecutorSettings(ExecutorSettingsBase):  # type: ignore[misc] # Snakemake is untyped
    """What the executor needs to reach the runner."""

    channel_fd: int | None = field(
        default=None,
        # The type is said again: Snakemake's command line cannot read the annotation.
        metadata={"help": "Descriptor of the socket to Hansa's runner.", "required": True, "type": int},
    )


class Executor(RealExecutor):  # type: ignore[misc] # Snakemake is untyped
    """Sends each job as a command; a thread waits for the answers.

    Not Snakemake's ``RemoteExecutor``: that one polls, and an answer here
    arrives by itself.
    """

    def __post_init__(self) -> None:
        """Start listening for answers."""
        descriptor = self.workflow.executor_settings.channel_fd
        if descriptor is None:
            raise WorkflowError("The executor 'hansa' runs under Hansa's runner only.")
        self._channel = Channel(descriptor)
        self._lock = threading.Lock()
        self._open: dict[int, SubmittedJobInfo] = {}
        self._number = 0
        threading.Thread(target=self._listen, name="hansa-answers", daemon=True).start()

    def run_job(self, job: Any) -> None:
        """Ask the runner for ``job``; its end is reported by the listening thread."""
        if job.is_group() or not job.is_shell:
            raise WorkflowError(f"Rule {job.name}: Hansa runs rules with a shell command only.")
        self.workflow.async_run(job.prepare())
        with self._lock:
            self._number += 1
            number = self._number
            info = SubmittedJobInfo(job, external_jobid=str(number))
            self._open[number] = info
        self.report_job_submission(info)
        self._channel.send_request(
            RuleRequest(
                number=number,
                rule=str(job.rule.name),
                threads=int(job.threads),
                command=str(job.shellcmd),
                outputs=[os.path.relpath(str(path)) for path in job.output],
            )
        )

    def _listen(self) -> None:
        try:
            for number, code in self._channel.answers():
                with self._lock:
                    info = self._open.pop(number, None)
                if info is None:
                    continue
                if code == 0:
                    self.report_job_success(info)
                else:
                    self.report_job_error(info, msg=f"exit status {code}")
            raise ConnectionError("the runner has gone")
        except Exception as error:  # the thread's outermost edge
            self.workflow.scheduler.executor_error_callback(error)

    def shutdown(self) -> None:
        """Do nothing: the process ends right after this."""

    def cancel(self) -> None:
        """Do nothing: the runner kills what runs."""

    @property
    def cores(self) -> str:
        """Whatever the sandbox allows."""
        return "all"

    def get_exec_mode(self) -> ExecMode:
        """Required by the interface; no job starts another Snakemake here."""
        return ExecMode.REMOTE

    def get_python_executable(self) -> str:
        """Required by the interface; no job starts another Snakemake here."""
        return "python"
