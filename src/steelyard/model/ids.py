"""Which object is meant? Ids are types, so that a job's id cannot be passed where an attempt's is asked for.

An `AttemptId` is `<job id>.<generation>`; a `ReplicaId` is `<function>.<revision>.<n>`; both also name the workload's cgroup,
folder and records, so they hold only [A-Za-z0-9._-].
"""

from __future__ import annotations

import re
from typing import NewType

ProjectName = NewType("ProjectName", str)
FunctionName = NewType("FunctionName", str)
JobId = NewType("JobId", str)
#: anything the spawner runs: an attempt of a job, a replica, a template
WorkloadId = NewType("WorkloadId", str)
AttemptId = NewType("AttemptId", str)
MachineId = NewType("MachineId", str)
#: a durable call of a function
CallId = NewType("CallId", str)
#: of an image: sha256 of its base and its steps, in hex
ImageId = NewType("ImageId", str)

#: what plans say for the home's own machine, whatever its id is
OWN_MACHINE = MachineId("")

DEFAULT_PROJECT = ProjectName("default")

#: DNS label rules: a function's name becomes a host name and a path
NAME = re.compile(r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\Z")
#: a project's name; it stands in addresses and tables
PROJECT = NAME
#: job names are for people; no control characters, bounded
JOB_NAME = re.compile(r"^[^\x00-\x1f\x7f/]{1,100}\Z")


def make_attempt_id(job: JobId, generation: int) -> AttemptId:
    return AttemptId(f"{job}.{generation}")


def name_logs(function: str) -> WorkloadId:
    """The folder that all replicas of a function write to."""
    return WorkloadId(f"fn.{function}")
