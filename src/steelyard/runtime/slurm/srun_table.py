"""Which options does `srun` have, and what becomes of each inside a job? Data."""

from __future__ import annotations

from .getopt import MAY, NONE, Option

_ONE = "the job has one machine"
_INSIDE = "a step uses what the job was given"


def _acts(name: str, short: str = "", value: str = "needed") -> Option:
    return Option(name, short, value, "acts")


def _quiet(name: str, short: str = "", value: str = "needed") -> Option:
    """True here without doing anything, so there is nothing to say."""
    return Option(name, short, value, "ignored")


def _ignored(name: str, short: str, why: str, value: str = "needed") -> Option:
    return Option(name, short, value, "ignored", why)


def _refused(name: str, short: str, why: str, value: str = "needed") -> Option:
    return Option(name, short, value, "refused", why)


OPTIONS: tuple[Option, ...] = (
    _acts("ntasks", "n"),
    _acts("nodes", "N"),
    _acts("ntasks-per-node"),
    _acts("cpus-per-task", "c"),
    _acts("cpu-bind"),
    _acts("gpus-per-task"),
    _acts("label", "l", NONE),
    _acts("output", "o"),
    _acts("error", "e"),
    _acts("input", "i"),
    _acts("open-mode"),
    _acts("chdir", "D"),
    _acts("export"),
    _acts("job-name", "J"),
    _acts("kill-on-bad-exit", "K", MAY),
    _acts("mpi"),
    _acts("pty", "", MAY),
    _acts("overcommit", "O", NONE),
    _acts("overlap", "", NONE),
    _acts("quiet", "Q", NONE),
    _acts("help", "h", NONE),
    # so it is
    _quiet("verbose", "v", NONE),
    _quiet("exclusive", "", MAY),
    _quiet("exact", "", NONE),
    _quiet("unbuffered", "u", NONE),
    _quiet("nodelist", "w"),
    _quiet("no-kill", "k", MAY),
    _quiet("jobid"),
    _quiet("whole", "", NONE),
    _quiet("relative", "r"),
    _quiet("wait", "W"),
    _quiet("threads"),
    _quiet("comment"),
    _quiet("account", "A"),
    _quiet("partition", "p"),
    _quiet("qos", "q"),
    _quiet("mem-bind"),
    _quiet("distribution", "m"),
    _quiet("hint"),
    _quiet("gpu-bind"),
    _quiet("accel-bind"),
    _quiet("propagate", "", MAY),
    _quiet("immediate", "I", MAY),
    _quiet("disable-status", "X", NONE),
    _quiet("preserve-env", "E", NONE),
    _quiet("quit-on-interrupt", "", NONE),
    _quiet("msg-timeout"),
    _quiet("slurmd-debug"),
    # named each time
    _ignored("time", "t", "a step ends with its command; `timeout` bounds it"),
    _ignored("mem", "", "the memory limit is the job's"),
    _ignored("mem-per-cpu", "", "the memory limit is the job's"),
    _ignored("mem-per-gpu", "", "the memory limit is the job's"),
    _ignored("gpus", "G", _INSIDE),
    _ignored("gpus-per-node", "", _INSIDE),
    _ignored("gres", "", _INSIDE),
    _ignored("ntasks-per-socket", "", _ONE),
    _ignored("ntasks-per-core", "", _ONE),
    _ignored("threads-per-core", "", _ONE),
    _ignored("sockets-per-node", "", _ONE),
    _ignored("cores-per-socket", "", _ONE),
    _ignored("constraint", "C", _ONE),
    _ignored("exclude", "x", _ONE),
    _ignored("cpu-freq", "", "clocks of cores stay as they are"),
    _ignored("signal", "", "ask for it when the job is submitted"),
    _ignored("network", "", "there is nothing like it here"),
    # would do something else
    _refused("multi-prog", "", "start each program with a step of its own: `srun -n1 A & srun -n1 B & wait`", NONE),
    _refused("het-group", "", "jobs are of one piece here"),
    _refused("bcast", "", "the file is on this machine already", MAY),
    _refused("prolog", "", "run it in the script"),
    _refused("epilog", "", "run it in the script"),
    _refused("task-prolog", "", "run it in the command: `srun sh -c 'prolog; exec command'`"),
    _refused("task-epilog", "", "run it in the command: `srun sh -c 'command; epilog'`"),
    _refused("container", "", "call the container's program (apptainer, podman)"),
    _refused("ntasks-per-gpu", "", "say --ntasks and --gpus-per-task"),
    _refused("cpus-per-gpu", "", "say --cpus-per-task"),
    _refused("test-only", "", "`sbatch --test-only` says what a job would get", NONE),
    _refused("x11", "", "there is no display", MAY),
)
