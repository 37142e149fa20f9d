"""How are the processes of an attempt told something, or ended? Each by the way that whoever started them has for it."""

from __future__ import annotations

import contextlib
import functools
import os

from steelyard.agent.attempt import Attempt
from steelyard.agent.job_container import JobContainers
from steelyard.agent.mpi_steps import MpiSteps
from steelyard.host import Cgroups
from steelyard.host.proc import read_environment
from steelyard.model.ids import AttemptId
from steelyard.runtime.process import ProcessRuntime

#: in the environment of what `srun` started
STEP = "SLURM_STEP_ID"


class JobSignals:
    def __init__(self, runtime: ProcessRuntime, containers: JobContainers, cgroups: Cgroups, steps: MpiSteps) -> None:
        self._runtime, self._containers, self._cgroups, self._steps = runtime, containers, cgroups, steps

    def send(self, state: Attempt, signum: int) -> None:
        for member in state.running:
            if state.by_step:
                self._steps.signal(AttemptId(member.workload), signum)
                continue
            self._runtime.stop(member.workload, signum)
            self._containers.signal(member.workload, signum, self._cgroups)

    def send_to_steps(self, state: Attempt, signum: int) -> None:
        """To what `srun` started, and not to the script around it, which as a rule would be ended by it."""
        for member in state.running:
            for pid in self._cgroups.pids(member.workload):
                if STEP in read_environment(pid):
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.kill(pid, signum)

    def kill(self, state: Attempt) -> None:
        for member in state.running:
            kill = functools.partial(self._runtime.kill, member.workload)
            if state.by_step:
                self._steps.kill(AttemptId(member.workload), kill)
            else:
                kill()
