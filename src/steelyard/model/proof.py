"""Did the workload get what it asked for? Asked beside got, read back from the kernel, and the comparison as a pure function."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class ProofState(StrEnum):
    MATCH = "MATCH"
    #: it matched before; somebody changed it since
    DRIFTED = "DRIFTED"
    #: some of what was asked can't be enforced or read here; `differences` names it
    PARTIAL = "PARTIAL"
    UNKNOWN = "UNKNOWN"


class Proof(msgspec.Struct, frozen=True):
    """Keys of asked and got: cpus (list of logical CPUs), share, memory_bytes, memory_nodes, io_max_bytes_s, scratch_bytes,
    volumes, uid, no_new_privs, cgroup, tier (see lifecycle/proof.py); of containers image, root (the type of its file system),
    namespaces, seccomp, capabilities, device_files, and memory_lock_limit where RDMA was granted; where the timing class asks
    for it timing, scheduler, memory_lock_limit, irqs_on_its_cpus, kernel_threads_on_its_cpus, governor, deep_idle_states,
    max_wakeup_us. Of jobs in a cluster's queue, which chooses their place: cpu_count, gpu_count, gpus (by the queue's numbers),
    host. A value of None in `got` means it could not be read."""

    state: ProofState
    asked: dict[str, object]
    got: dict[str, object]
    #: a sentence each
    differences: tuple[str, ...] = ()
    checked_at: int | None = None
    #: sentences that are worth knowing and that nobody promised
    notes: tuple[str, ...] = ()


class ReplicaProof(msgspec.Struct, frozen=True):
    """Of one replica of a function."""

    replica: str
    revision: int
    #: trial, starting, serving or retiring
    state: str
    proof: Proof
    #: of a pool; "" for the home's own
    machine: str = ""
