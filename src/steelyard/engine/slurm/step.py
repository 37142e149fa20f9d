"""`steelyard-step`: what stands between Slurm and a task. It pins the task inside the allocation, tells it its place, and writes
its exit record.

It travels in the batch script and runs on a node's own python3 (3.8 or later): the standard library alone, and nothing of ours.

    python3 -c "$THIS" PREFIX KIND COMMAND [ARGUMENT]...

PREFIX is what the attempt's files begin with; their folder is on storage that nodes and login host share, and where it isn't, the
task runs all the same and Slurm's word for its exit code has to do. KIND is `ranks` or `script`.
"""

import json
import os
import pwd
import signal
import socket
import sys
import time

#: of a shell: there is no such program, or it can't be executed
NOT_FOUND, NOT_EXECUTABLE = 127, 126
#: another job of Slurm's has this attempt already
TAKEN = 75


def main(words):
    global task
    prefix, kind, command = words[0], words[1], words[2:]
    rank = number("SLURM_PROCID") if kind == "ranks" else 0
    if not claim(prefix):
        say("another job of Slurm's runs this attempt already; this one ends")
        return TAKEN
    complete_environment(kind)
    if kind == "ranks":
        pin()
    signals = set(signal.Signals) - {
        signal.SIGKILL,
        signal.SIGSTOP,
        signal.SIGCHLD,
        signal.SIGTSTP,
        signal.SIGTTIN,
        signal.SIGTTOU,
    }
    for each in signals:  # we stay to tell how the task ended
        signal.signal(each, pass_on)
    facts = {"rank": rank, "host": socket.gethostname(), "cpus": sorted(os.sched_getaffinity(0)), "started_at": now()}
    write(f"{prefix}.{rank}.started", facts)
    try:
        task = os.posix_spawnp(command[0], command, os.environ, setsigdef=[signal.SIGPIPE, signal.SIGXFSZ])
    except OSError as err:
        say(f"{command[0]}: {err.strerror}")
        code = NOT_FOUND if isinstance(err, FileNotFoundError) else NOT_EXECUTABLE
        write(f"{prefix}.{rank}.exit", {**facts, "exit_code": code, "ended_at": now(), "not_started": err.strerror})
        return code
    _, status, used = os.wait4(task, 0)
    if kind == "script":
        os.unlink(command[0])
    code, number_ = (os.WEXITSTATUS(status), None) if os.WIFEXITED(status) else (None, os.WTERMSIG(status))
    ended = {"exit_code": code, "signal": number_, "ended_at": now()}
    write(
        f"{prefix}.{rank}.exit",
        {**facts, **ended, "peak_memory_bytes": used.ru_maxrss << 10, "cpu_s": used.ru_utime + used.ru_stime},
    )
    if number_ is not None:
        signal.signal(number_, signal.SIG_DFL) if number_ != signal.SIGKILL else None
        os.kill(os.getpid(), number_)
    return 128 + (number_ or 0) if code is None else code


task = 0


def pass_on(number, _frame):
    """Where Slurm tracks processes by control groups it signals those alone that it started itself, otherwise all of a step."""
    if task and by_control_groups():
        os.kill(task, number)


def by_control_groups():
    try:
        with open("/proc/self/cgroup") as file:
            groups = [line.rstrip("\n").split(":", 2) for line in file]
    except OSError:
        return False
    return any("/job_" in path and controllers in ("freezer", "") for _, controllers, path in groups)


def claim(prefix):
    """An attempt runs once, even where Slurm took the same submission twice: the first job to run it writes its number down."""
    job = os.environ.get("SLURM_JOB_ID", "")
    mine = f"{prefix}.claim.{job}.{number('SLURM_PROCID')}"
    try:
        with open(mine, "w") as file:
            file.write(job)
        try:
            os.link(mine, f"{prefix}.claim")
        except FileExistsError:
            with open(f"{prefix}.claim") as file:
                return file.read() == job
        finally:
            os.unlink(mine)
    except OSError as err:
        place = err.filename or prefix
        say(f"{place} can't be written ({err.strerror}): is the folder of `cluster attach` shared with this node?")
    return True


def complete_environment(kind):
    """Who and where the task is. What Slurm or the submitter set stays."""
    entry = pwd.getpwuid(os.getuid())
    for name, value in (("HOME", entry.pw_dir), ("USER", entry.pw_name), ("LOGNAME", entry.pw_name), ("SHELL", entry.pw_shell)):
        os.environ.setdefault(name, value)
    if kind != "ranks" or "STEELYARD_TASKS" not in os.environ:
        return
    names = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_NTASKS", "LOCAL_RANK": "SLURM_LOCALID", "NODE_RANK": "SLURM_NODEID",
             "GROUP_RANK": "SLURM_NODEID", "STEELYARD_NODE_RANK": "SLURM_NODEID", "JAX_NUM_PROCESSES": "SLURM_NTASKS",
             "JAX_PROCESS_ID": "SLURM_PROCID"}  # fmt: skip
    os.environ.update({name: os.environ[theirs] for name, theirs in names.items() if theirs in os.environ})
    os.environ["LOCAL_WORLD_SIZE"] = str(local_tasks())


def pin():
    """Where Slurm left several tasks of a node on the same CPUs, each gets its own of them: neighbours, of one memory node."""
    tasks, local = local_tasks(), number("SLURM_LOCALID")
    allowed = sorted(os.sched_getaffinity(0), key=place_of)
    if tasks < 2 or "mask_cpu" in os.environ.get("SLURM_CPU_BIND", "") or len(allowed) < tasks:
        return
    each = min(len(allowed) // tasks, number("SLURM_CPUS_PER_TASK") or len(allowed) // tasks)
    os.sched_setaffinity(0, allowed[local * each : (local + 1) * each])


def place_of(cpu):
    """(memory node, socket, core) of a CPU, as far as the kernel tells."""
    folder = f"/sys/devices/system/cpu/cpu{cpu}"
    try:
        nodes = [int(name[4:]) for name in os.listdir(folder) if name.startswith("node") and name[4:].isdigit()]
    except OSError:
        nodes = []
    return (
        min(nodes, default=0),
        read_number(f"{folder}/topology/physical_package_id"),
        read_number(f"{folder}/topology/core_id"),
        cpu,
    )


def local_tasks():
    """How many of the step's tasks are on this node: `2(x3),1` is 2, 2, 2, 1."""
    counts = []
    for part in os.environ.get("SLURM_STEP_TASKS_PER_NODE", "1").split(","):
        count, _, times = part.partition("(x")
        counts += [int(count)] * int(times.rstrip(")") or 1)
    node = number("SLURM_NODEID")
    return counts[node] if node < len(counts) else 1


def number(name):
    value = os.environ.get(name, "")
    return int(value) if value.isdigit() else 0


def read_number(path):
    try:
        with open(path) as file:
            return int(file.read())
    except (OSError, ValueError):
        return 0


def write(path, record):
    """All of it or nothing, for whoever reads it: temp, fsync, rename."""
    try:
        with open(f"{path}.tmp", "w") as file:
            json.dump(record, file)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.rename(f"{path}.tmp", path)
    except OSError:
        pass  # said by `claim` already


def now():
    return time.time_ns() // 1000


def say(text):
    sys.stderr.write(f"steelyard-step: {text}\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
