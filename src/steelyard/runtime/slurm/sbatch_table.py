"""Which options does `sbatch` have, and what becomes of each here? Data; the parser (`api/sbatch_options.py`), the `sbatch`
stand-in, `steelyard submit` and the documentation all read it.

Ignored is only what changes where a job would run or how it is accounted; what would change what it does is refused.
"""

from __future__ import annotations

from .getopt import MAY, NONE, Given, Option, find_option, read_options

_ONE = "there is one machine, and Steelyard chooses cores, memory and devices on it"
_MAIL = "no mail is sent; `steelyard job ID` and `--wait` tell how it ended"
_COUNTED = "nothing here is accounted by it"
_NOT_HERE = "there is nothing like it here"


def _acts(name: str, short: str, becomes: str, value: str = "needed") -> Option:
    return Option(name, short, value, "acts", becomes)


def _ignored(name: str, short: str, why: str, value: str = "needed") -> Option:
    return Option(name, short, value, "ignored", why)


def _refused(name: str, short: str, why: str, value: str = "needed") -> Option:
    return Option(name, short, value, "refused", why)


def _client(name: str, short: str, why: str, value: str = NONE) -> Option:
    return Option(name, short, value, "client", why)


OPTIONS: tuple[Option, ...] = (
    # how much
    _acts("nodes", "N", "must be 1 (or a range that begins with 1): this is one machine"),
    _acts("ntasks", "n", "the job gets ntasks × cpus-per-task cores; `srun` starts that many processes"),
    _acts("ntasks-per-node", "", "as ntasks, for each node"),
    _acts("ntasks-per-gpu", "", "ntasks from the number of GPUs, or the other way round"),
    _acts("cpus-per-task", "c", "cores for each task"),
    _acts("cpus-per-gpu", "", "cores for each GPU"),
    _acts("mincpus", "", "at least that many cores"),
    _acts("overcommit", "O", "one core, however many tasks", NONE),
    _acts("exclusive", "", "whole cores that nobody else runs on, as many as asked for; not the whole machine", MAY),
    _acts("gpus", "G", "GPUs, by model where a type is given"),
    _acts("gpus-per-node", "", "as gpus: there is one node"),
    _acts("gpus-per-task", "", "GPUs for each task"),
    _acts("gres", "", "gpu[:type][:count] only, as gpus"),
    _acts("mem", "", "memory limit of the job; 0 means no limit"),
    _acts("mem-per-cpu", "", "memory limit: that much for each core"),
    _acts("mem-per-gpu", "", "memory limit: that much for each GPU"),
    # when
    _acts("time", "t", "the job ends after that long (whole minutes, rounded up); 0 and UNLIMITED mean no limit"),
    _acts("begin", "b", "not started before"),
    _acts("dependency", "d", "after, afterok, afternotok, afterany; all must hold"),
    _acts("hold", "H", "waits until it is released", NONE),
    _acts("nice", "", "lowers the priority of 50 by 1 for each 10; 100 when no number is given", MAY),
    _acts("priority", "", "0 to 100 as it is; 0 holds the job"),
    _acts("array", "a", "one job for each index; %N at a time"),
    _acts("signal", "", "a signal that long before the time limit; without B: only to what `srun` started"),
    _acts("requeue", "", "queued again after its machine was lost, or after it gave way (the default, as in Slurm)", NONE),
    _acts("no-requeue", "", "never queued again", NONE),
    # what and where
    _acts("job-name", "J", "its name; otherwise the script's"),
    _acts("output", "o", "file of its output, with %A %a %b %j %J %N %n %s %t %u %x %%; slurm-%j.out otherwise"),
    _acts("error", "e", "file of its error output; otherwise that of its output"),
    _acts("open-mode", "", "append, or truncate (the default)"),
    _acts("chdir", "D", "its working folder"),
    _acts("export", "", "which of the caller's variables it gets: ALL (the default), NONE, NAME, NAME=VALUE"),
    _acts("account", "A", "whose fair share it uses"),
    _acts("input", "i", "/dev/null only, which is the default"),
    _acts("wrap", "", "a command line that takes the place of a script; on the command line only"),
    # understood, not acted on
    _ignored("partition", "p", "there are no partitions: every job waits in one queue"),
    _ignored("qos", "q", "there are no classes of service: --nice, or `steelyard run --priority`, orders the queue"),
    _ignored("constraint", "C", _ONE),
    _ignored("cluster-constraint", "", _ONE),
    _ignored("prefer", "", _ONE),
    _ignored("clusters", "M", "this is the only cluster"),
    _ignored("nodelist", "w", _ONE),
    _ignored("nodefile", "F", _ONE),
    _ignored("exclude", "x", _ONE),
    _ignored("reservation", "", "there are no reservations"),
    _ignored("licenses", "L", "licences are not counted here"),
    _ignored("mail-type", "", _MAIL),
    _ignored("mail-user", "", _MAIL),
    _ignored("comment", "", _COUNTED),
    _ignored("admin-comment", "", _COUNTED),
    _ignored("extra", "", _COUNTED),
    _ignored("wckey", "", _COUNTED),
    _ignored("mcs-label", "", _COUNTED),
    _ignored("acctg-freq", "", "use over time is always recorded; `steelyard job ID` shows it"),
    _ignored("profile", "", "use over time is always recorded; `steelyard job ID` shows it"),
    _ignored("batch", "", _ONE),
    _ignored("contiguous", "", _ONE, NONE),
    _ignored("spread-job", "", _ONE, NONE),
    _ignored("use-min-nodes", "", _ONE, NONE),
    _ignored("switches", "", _ONE),
    _ignored("segment", "", _ONE),
    _ignored("no-kill", "k", _ONE, MAY),
    _ignored("wait-all-nodes", "", _ONE),
    _ignored("distribution", "m", _ONE),
    _ignored("extra-node-info", "B", _ONE),
    _ignored("sockets-per-node", "", _ONE),
    _ignored("cores-per-socket", "", _ONE),
    _ignored("threads-per-core", "", "cores are given with all their threads"),
    _ignored("ntasks-per-core", "", "cores are given with all their threads"),
    _ignored("ntasks-per-socket", "", _ONE),
    _ignored("hint", "", "cores are given with all their threads; `srun --cpu-bind` binds tasks"),
    _ignored("mem-bind", "", "memory is taken near the cores"),
    _ignored("gpu-bind", "", "GPUs are chosen near the cores; `srun --gpus-per-task` divides them among tasks"),
    _ignored("gres-flags", "", "GPUs are always chosen near the cores"),
    _ignored("tres-bind", "", "GPUs are always chosen near the cores"),
    _ignored("gpu-freq", "", "clocks of devices stay as they are"),
    _ignored("cpu-freq", "", "clocks of cores stay as they are"),
    _ignored("power", "", _NOT_HERE),
    _ignored("core-spec", "S", "one core always stays with the platform"),
    _ignored("thread-spec", "", "one core always stays with the platform"),
    _ignored("oversubscribe", "s", "jobs share cores unless --exclusive is given", NONE),
    _ignored("tmp", "", "disk space is not reserved; `steelyard run --scratch` gives a private folder"),
    _ignored("time-min", "", "the time limit stays as given by --time"),
    _ignored("deadline", "", "jobs that can't end in time are not removed"),
    _ignored("delay-boot", "", _NOT_HERE),
    _ignored("reboot", "", "machines are not restarted for jobs", NONE),
    _ignored("kill-on-invalid-dep", "", "a job whose dependency can't come true any more is ended"),
    _ignored("network", "", _NOT_HERE),
    _ignored("resv-ports", "", _NOT_HERE, MAY),
    _ignored("propagate", "", "limits (ulimit) are the machine's", MAY),
    _ignored("oom-kill-step", "", "the kernel ends the whole job at its memory limit", MAY),
    _ignored("stepmgr", "", _NOT_HERE, NONE),
    _ignored("get-user-env", "", "the environment is what --export says; `bash -l` in the first line reads the profile", MAY),
    _ignored("ignore-pbs", "", "#PBS and #BSUB lines are never read", NONE),
    # would change what the job does
    _refused("bb", "", "there is no burst buffer: copy files in the script, to $TMPDIR"),
    _refused("bbf", "", "there is no burst buffer: copy files in the script, to $TMPDIR"),
    _refused("container", "", "jobs run as processes: call the container's program (apptainer, podman) in the script"),
    _refused("container-id", "", "jobs run as processes: call the container's program (apptainer, podman) in the script"),
    _refused("export-file", "", "write the variables into the script, or --export=NAME=VALUE"),
    _refused("gpus-per-socket", "", "say how many GPUs in all: --gpus"),
    _refused("tres-per-task", "", "say --cpus-per-task and --gpus-per-task"),
    _refused("uid", "", "a job runs as who submits it"),
    _refused("gid", "", "a job runs as who submits it"),
    _refused("x11", "", "there is no display", MAY),
    # for the command itself
    _client("parsable", "", "only the job's id is printed", MAY),
    _client("wait", "W", "returns when the job has ended, with its exit code"),
    _client("test-only", "", "nothing is submitted"),
    _client("quiet", "Q", "nothing but errors is said"),
    _client("verbose", "v", "nothing more is said"),
    _client("help", "h", "help is printed"),
    _client("usage", "u", "help is printed"),
    _client("version", "V", "the version is printed"),
)

#: older names that Slurm still takes
_OLDER = {
    "cluster": "clusters",
    "mem_bind": "mem-bind",
    "share": "oversubscribe",
    "tasks": "ntasks",
    "tasks-per-node": "ntasks-per-node",
    "workdir": "chdir",
}
_READ = OPTIONS + tuple(find_option(OPTIONS, name)._replace(name=older, short="") for older, name in _OLDER.items())


def read_sbatch(words: list[str], more: tuple[Option, ...] = ()) -> tuple[list[Given], int]:
    """The options, under the names that they have today, and the place of the first word that is none. `more`: options that the
    caller has besides. Raises NotUnderstood."""
    found, end = read_options((*_READ, *more), words)
    return [
        each._replace(option=find_option(OPTIONS, _OLDER[each.option.name])) if each.option.name in _OLDER else each
        for each in found
    ], end
