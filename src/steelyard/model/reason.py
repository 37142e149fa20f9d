"""Why is it so? One stable enum, the same in refusals, states, metrics, API and CLI. Values are kebab-case and never reused."""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    # placement
    CORES_BEYOND_MACHINE = "cores-beyond-machine"
    MEMORY_BEYOND_MACHINE = "memory-beyond-machine"
    NO_CORES_LEFT = "no-cores-left"
    NO_MEMORY_LEFT = "no-memory-left"
    GPUS_BEYOND_MACHINE = "gpus-beyond-machine"
    NO_GPUS_LEFT = "no-gpus-left"
    NO_SUCH_GPU = "no-such-gpu"
    NO_FRACTION_LEFT = "no-fraction-left"
    NO_MIG_INSTANCE = "no-mig-instance"
    NICS_BEYOND_MACHINE = "nics-beyond-machine"
    NO_NICS_LEFT = "no-nics-left"
    NO_MACHINE = "no-machine"
    NODE_DRAINED = "node-drained"
    BEHIND_EARLIER_JOB = "behind-earlier-job"
    GANG_BEYOND_FABRIC = "gang-beyond-fabric"
    NO_DOMAIN_HOLDS_GANG = "no-domain-holds-gang"
    NO_ALIGNED_RAILS = "no-aligned-rails"
    NO_SUCH_LEVEL = "no-such-level"
    # ends of jobs
    EXITED = "exited"
    EXITED_NONZERO = "exited-nonzero"
    KILLED_BY_SIGNAL = "killed-by-signal"
    OOM_KILLED = "oom-killed"
    STOPPED_BY_USER = "stopped-by-user"
    START_FAILED = "start-failed"
    NODE_LOST = "node-lost"
    EXIT_UNKNOWN = "exit-unknown"
    NOT_STARTED = "not-started"
    DEVICE_GONE = "device-gone"
    AGENT_UNREACHABLE = "agent-unreachable"
    # functions
    IMPORT_FAILED = "import-failed"
    READINESS_FAILED = "readiness-failed"
    STARTUP_DEADLINE = "startup-deadline"
    CRASH_LOOP = "crash-loop"
    GATEWAY_REJECTED = "gateway-rejected"
    # roads of a wake
    TEMPLATE_READY = "template-ready"
    TEMPLATE_HAS_THREADS = "template-has-threads"
    TEMPLATE_NOT_READY = "template-not-ready"
    TEMPLATE_EVICTED = "template-evicted"
    TEMPLATE_DIED = "template-died"
    FORK_FAILED = "fork-failed"
    NOT_UNDERSTOOD = "not-understood"
    COMMAND_HAS_NO_TEMPLATE = "command-has-no-template"
