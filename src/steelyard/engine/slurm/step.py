"""`steelyard-step`: what stands between Slurm and a task. It pins the task inside the allocation, tells it its place, and writes
what it got and how it ended.

It travels in the batch script and runs on a node's own python3 (3.8 or later): the standard library alone, and nothing of ours.

    python3 -I -S -c "$THIS" PREFIX KIND COMMAND [ARGUMENT]...

A single `task` is started by its twin in perl (`step.pl`) where a node has that: what one of them does, the other does too.

PREFIX is what the attempt's files begin with; their folder is on storage that nodes and login host share, and where it isn't, the
task runs all the same and Slurm's word for its exit code has to do. KIND is what srun starts: `ranks` of a gang, or for each of
its `nodes` the launcher of the ranks there; or what the batch script starts itself: a single `task`, or a `script` for sbatch.

The task waits for it: what is imported before it starts, and what may as well be read afterwards, is counted in milliseconds.
"""

# `signal`, `socket` and `json` would double the time that this takes to start
import _signal as signal  # pyright: ignore[reportMissingImports]
import os
import pwd
import sys
import time

#: of a shell: there is no such program, or it can't be executed
NOT_FOUND, NOT_EXECUTABLE = 127, 126
#: another job of Slurm's has this attempt already
TAKEN = 75
#: ours to tell how the task ended: all signals but those that can't be caught or are not meant for programs
PASSED_ON = {*range(1, 32), *range(34, 65)} - {
    signal.SIGKILL,
    signal.SIGSTOP,
    signal.SIGCHLD,
    signal.SIGTSTP,
    signal.SIGTTIN,
    signal.SIGTTOU,
}


def main(words):
    global task, kind
    prefix, kind, command = words[0], words[1], words[2:]
    rank = number("SLURM_PROCID") if kind in ("ranks", "nodes") else 0
    if not claim(prefix):
        say("another job of Slurm's runs this attempt already; this one ends")
        return TAKEN
    complete_environment()
    if kind == "ranks":
        pin()
    for each in PASSED_ON:
        signal.signal(each, pass_on)
    began = {"rank": rank, "host": os.uname().nodename, "started_at": now()}
    try:
        task = os.posix_spawnp(command[0], command, os.environ, setsigdef=[signal.SIGPIPE, signal.SIGXFSZ])
    except OSError as err:
        say(f"{command[0]}: {err.strerror}")
        code = NOT_FOUND if isinstance(err, FileNotFoundError) else NOT_EXECUTABLE
        write(f"{prefix}.{rank}.exit", {**began, "exit_code": code, "ended_at": now(), "not_started": err.strerror})
        return code
    for each in early:
        os.kill(task, each)
    facts = {**began, **look_around()}
    write(f"{prefix}.{rank}.started", facts, lasting=False)
    _, status, used = os.wait4(task, 0)
    if kind == "script":
        os.unlink(command[0])
    code, number_ = (os.WEXITSTATUS(status), None) if os.WIFEXITED(status) else (None, os.WTERMSIG(status))
    ended = {"exit_code": code, "signal": number_, "ended_at": now()}
    spent = {"peak_memory_bytes": used.ru_maxrss << 10, "cpu_ms": round((used.ru_utime + used.ru_stime) * 1000)}
    write(f"{prefix}.{rank}.exit", {**facts, **ended, **spent})
    if number_ is not None:
        signal.signal(number_, signal.SIG_DFL) if number_ != signal.SIGKILL else None
        os.kill(os.getpid(), number_)
    return 128 + (number_ or 0) if code is None else code


task, kind = 0, ""
#: signals that came before there was a task
early = []


def pass_on(number, _frame):
    """Where Slurm tracks processes by control groups it signals those alone that it started itself, otherwise all of a step. Of a
    single task we are asked to signal what the batch script became: that is us."""
    if not (kind == "task" or by_control_groups()):
        return
    if task:
        os.kill(task, number)
    else:
        early.append(number)


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
    # a slurmctld that came back with an older state starts a job anew, by its old number
    job = f"{job} {os.environ.pop('STEELYARD_LAUNCH', '')}"
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


def complete_environment():
    """Who and where the task is. What Slurm or the submitter set stays."""
    entry = pwd.getpwuid(os.getuid())
    for name, value in (("HOME", entry.pw_dir), ("USER", entry.pw_name), ("LOGNAME", entry.pw_name), ("SHELL", entry.pw_shell)):
        os.environ.setdefault(name, value)
    if "STEELYARD_TASKS" not in os.environ:
        return
    # a launcher tells the ranks that it starts all but this
    names = {"STEELYARD_NODE_RANK": "SLURM_NODEID"}
    if kind == "ranks":
        names = {**names, "RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_NTASKS", "LOCAL_RANK": "SLURM_LOCALID",
                 "NODE_RANK": "SLURM_NODEID", "GROUP_RANK": "SLURM_NODEID", "JAX_NUM_PROCESSES": "SLURM_NTASKS",
                 "JAX_PROCESS_ID": "SLURM_PROCID"}  # fmt: skip
        os.environ["LOCAL_WORLD_SIZE"] = str(local_tasks())
    os.environ.update({name: os.environ[theirs] for name, theirs in names.items() if theirs in os.environ})


def pin():
    """Where Slurm left several tasks of a node on the same CPUs, each gets its own of them: neighbours, of one memory node. In a
    pool's allocation it is told which CPUs of each node are the ranks' own; where none are, they share them with others."""
    tasks, local = local_tasks(), number("SLURM_LOCALID")
    allowed = sorted(os.sched_getaffinity(0), key=place_of)
    told = os.environ.pop("STEELYARD_STEP_CPUS", None)
    if told is not None:
        given = [int(cpu) for cpu in told.split(";")[number("SLURM_NODEID")].split(",") if cpu]
        if not given:
            return
        os.sched_setaffinity(0, given)
        allowed = sorted(given, key=place_of)
    if tasks < 2 or "mask_cpu" in os.environ.get("SLURM_CPU_BIND", "") or len(allowed) < tasks:
        return
    each = len(allowed) // tasks
    if told is None:
        each = min(each, number("SLURM_CPUS_PER_TASK") or each)
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


def look_around():
    """What the task really got, read back from the kernel; GPUs, as Slurm tells."""
    with open("/proc/self/status") as file:
        status = dict(line.split(":\t", 1) for line in file if ":\t" in line)
    gpus = os.environ.get("SLURM_STEP_GPUS") or os.environ.get("SLURM_JOB_GPUS") or ""
    return {
        "cpus": sorted(os.sched_getaffinity(0)),
        "memory_nodes": [node for part in status["Mems_allowed_list"].strip().split(",") for node in span(part)],
        "memory_bytes": memory_limit(),
        "gpus": [gpu for gpu in gpus.split(",") if gpu],
        "uid": os.getuid(),
        # of the whole job on this node, by Slurm's own account
        "cpus_allotted": number("SLURM_CPUS_ON_NODE"),
        "tasks_here": local_tasks(),
    }


def span(part):
    first, _, last = part.partition("-")
    return range(int(first), int(last or first) + 1)


def memory_limit():
    """The lowest one in force for our control group; None without any."""
    limits = []
    try:
        with open("/proc/self/cgroup") as file:
            groups = [line.rstrip("\n").split(":", 2) for line in file]
    except OSError:
        return None
    for _, controllers, path in groups:
        if controllers and "memory" not in controllers.split(","):
            continue
        root, name = ("/sys/fs/cgroup/memory", "memory.limit_in_bytes") if controllers else ("/sys/fs/cgroup", "memory.max")
        while path.strip("/"):
            limits.append(read_number(f"{root}{path}/{name}"))
            path = path.rpartition("/")[0]
    return min((limit for limit in limits if 0 < limit < 1 << 62), default=None)


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


def write(path, record, lasting=True):
    """All of it or nothing, for whoever reads it: temp, fsync, rename. What need not outlive the node is not synced."""
    try:
        with open(f"{path}.tmp", "w") as file:
            file.write(render(record) + "\n")
            file.flush()
            if lasting:
                os.fsync(file.fileno())
        os.rename(f"{path}.tmp", path)
    except OSError:
        pass  # said by `claim` already


def render(value):
    """As JSON: texts, whole numbers, None, lists and dictionaries of such."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{render(name)}:{render(each)}" for name, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(render, value)) + "]"
    if isinstance(value, str):
        return '"' + "".join(char if char.isprintable() and char not in '"\\' else f"\\u{ord(char):04x}" for char in value) + '"'
    return "null" if value is None else str(value)


def now():
    return time.time_ns() // 1000


def say(text):
    sys.stderr.write(f"steelyard-step: {text}\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
