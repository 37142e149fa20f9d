"""Which options say what a job asks for, and what `JobSpec` do they make? Shared by every command that makes jobs.

Text of the command line in, nouns out. What is misspelt is refused here with the grammar, what is impossible at the server.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import PurePath
from typing import Any, TypeVar

import click

from steelyard.cli.numbers import Number
from steelyard.cli.quantities import parse_bytes, parse_seconds, parse_signal
from steelyard.errors import Refused
from steelyard.model.batch import (
    PRIORITY_DEFAULT,
    Dependency,
    DependencyKind,
    Gang,
    Launcher,
    Preemption,
    PreemptMode,
    RetryOn,
    RetryRule,
    Warn,
)
from steelyard.model.gpu_demand import parse_gpu_demand
from steelyard.model.ids import JobId
from steelyard.model.image import ImageSource, is_reference, parse_image
from steelyard.model.job import JobSpec, Resources
from steelyard.model.mount import VolumeMount, parse_mount
from steelyard.model.secret import SecretUse, parse_use
from steelyard.model.timing import Timing

F = TypeVar("F", bound=Callable[..., Any])

#: passed on from the caller, so that the command is found and speaks the caller's language
PASSED_ON = ("PATH", "LANG", "LC_ALL", "TZ", "TERM")
#: what --requeue means: as often as any real trouble comes
_REQUEUE = (RetryRule(RetryOn.NODE_LOST, 100), RetryRule(RetryOn.PREEMPTED, 1000, 0.0))


def _choices(kind: Any) -> click.Choice:
    return click.Choice([value.value for value in kind])


#: `--volume`, as every command has it that starts work
volume_option = click.option(
    "--volume", "volumes", multiple=True, metavar="NAME[:PATH[:ro]]",
    help="Mount a volume there; without a path $STEELYARD_VOLUME_<NAME> tells its folder. May be repeated.",
)  # fmt: skip

#: `--secret`, likewise
secret_option = click.option(
    "--secret", "secrets", multiple=True, metavar="NAME[:files|:registry]",
    help="Give it a secret's keys as variables, or as files below $STEELYARD_SECRETS/NAME; or fetch its image with the USERNAME "
    "and PASSWORD of one. May be repeated.",
)  # fmt: skip

#: `--pool`, likewise
pool_option = click.option("--pool", metavar="NAME", default="", help="On a machine of that pool; see `steelyard pool`.")

#: `--network`, likewise
network_option = click.option(
    "--network", type=click.Choice(["host", "none"]), default="host", show_default=True,
    help="Of a container: the machine's network, or none but its own loopback.",
)  # fmt: skip

_OPTIONS = (
    click.option(
        "--cpus", type=Number(), default=1.0, show_default=True, help="Cores: a share in common, or whole ones with --exclusive."
    ),
    click.option("--exclusive", is_flag=True, help="Whole physical cores that nobody else runs on."),
    click.option(
        "--timing", type=_choices(Timing), default=Timing.BEST_EFFORT.value, show_default=True,
        help="How punctual: `dedicated` takes whole cores, `realtime` also comes first on them.",
    ),
    click.option(
        "--max-wakeup-us", type=int, metavar="N", help="Watch that nothing on its cores wakes later than this, in microseconds."
    ),
    click.option(
        "--gpus", metavar="DEMAND", help="GPUs, for example 2, H100:4, A100:80GB:2, 24GB..40GB, H100:0.5 or A100:1g.10gb."
    ),
    click.option("--nics", type=click.IntRange(0, 256), default=0, help="Network cards near the GPUs."),
    click.option("--memory", help="Memory limit, for example 4GB [default: none]."),
    click.option("--scratch", metavar="SIZE", help="A private folder of that size on the fastest local disk, gone at the end."),
    volume_option,
    click.option("--io-max", metavar="SIZE", help="Reading and writing of local disks, each per second, for example 200MB."),
    click.option("--nodes", type=click.IntRange(1), help="Start ranks on that many nodes, all or none."),
    click.option("--tasks-per-node", type=click.IntRange(1), help="Ranks on each node; the resources asked are each rank's."),
    click.option(
        "--launcher",
        type=_choices(Launcher),
        help="Who starts the ranks: Steelyard (`none`), one torchrun, or one mpirun (with --pool, a step of Slurm's).",
    ),
    click.option("--array", metavar="LIST", help="Many jobs at once, for example 0-99%8: a hundred, eight at a time."),
    click.option("--after", metavar="DEPS", help="Wait for other jobs: ok:ID,any:ID (also not-ok, started)."),
    click.option("--priority", type=click.IntRange(0, 100), default=PRIORITY_DEFAULT, show_default=True, help="Higher first."),
    click.option("--account", default="", help="Whose fair share it uses, such as lab/alice [default: the user's name]."),
    click.option("--project", default="default", show_default=True, help="Whose quota it counts against."),
    click.option("--hold", is_flag=True, help="Don't start it before `steelyard release`."),
    click.option("--begin", metavar="WHEN", help="Not before: a time such as 2030-01-31T08:00, or 2h from now."),
    click.option("--max-duration", metavar="TIME", help="End it after that long; lets it fill gaps in the queue."),
    click.option("--warn", metavar="SIGNAL@TIME", help="A signal before that end, for example USR1@60s."),
    click.option("--start-timeout", metavar="TIME", help="End it unless it has touched $STEELYARD_HEARTBEAT by then."),
    click.option("--heartbeat-timeout", metavar="TIME", help="End it when it has not touched that file for so long."),
    click.option("--retry", metavar="RULES", help="Try again: error:3@30s,oom:1,node-lost:5 (times, and the first wait)."),
    click.option("--requeue", is_flag=True, help="Try again whenever its node was lost."),
    click.option("--preemptible", is_flag=True, help="Give way to others, on the cores at once and in the queue."),
    click.option(
        "--preempt", type=_choices(PreemptMode), default=PreemptMode.REQUEUE.value, show_default=True,
        help="How it gives way: ended and queued again, frozen, or ended for good.",
    ),
    click.option("--preempt-signal", default="TERM", show_default=True, help="What tells it to give way."),
    click.option("--preempt-grace", default="30s", show_default=True, help="From that to SIGKILL."),
    click.option("--min-runtime", default="0s", show_default=True, help="Safe from giving way for that long."),
    click.option(
        "--checkpoint-dir", type=click.Path(),
        help="Its newest entry is told to a restarted job, in STEELYARD_CHECKPOINT.",
    ),
    click.option("--output", type=click.Path(), help="A file for its output, instead of `steelyard logs`."),
    click.option("--error", "errors", type=click.Path(), help="A file for its errors [default with --output: the same]."),
    click.option("--image", metavar="IMAGE", default="", help="Run in an image of `steelyard image ls`, by name or id; or in a "
                 "container: registry.host/path:tag, docker://name:tag, oci:/path or docker-archive:/path."),
    network_option,
    click.option("--direct", is_flag=True, help="Through Slurm's own queue, on the cluster of `steelyard cluster attach`."),
    pool_option,
    click.option("--name", help="A name for people [default: the command's]."),
    click.option(
        "--env", "env", multiple=True, metavar="K=V", help="Set a variable (K alone takes the caller's value). May be repeated."
    ),
    secret_option,
    click.option("--as-root", is_flag=True, help="Run as root (only for the admin of a Steelyard that root started)."),
)  # fmt: skip


def job_options(command: F) -> F:
    """All of them, in the order of `--help`. The command gets them as keywords, for `make_spec`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def default_options() -> dict[str, Any]:
    """What the command gets when none of them is given; for those that read options from elsewhere."""

    @click.command()
    @job_options
    def nothing(**_: Any) -> None: ...

    return dict(nothing.make_context("nothing", []).params)


def make_spec(command: tuple[str, ...], asked: Mapping[str, Any], cwd: str, now: datetime) -> JobSpec:
    """What the options ask for. `array` and `project` are not the spec's: they go beside it. Raises Refused."""
    output = _path(asked["output"], cwd)
    retry = parse_retry(asked["retry"]) if asked["retry"] else ()
    if asked["requeue"]:
        retry += tuple(rule for rule in _REQUEUE if rule.on not in {each.on for each in retry})
    image = name_image(asked["image"], cwd)
    return JobSpec(
        name=asked["name"] or (os.path.basename(command[0]) or command[0] if command else _name_of(image)),
        argv=command,
        cwd="" if is_reference(image) else cwd,
        env=_passed_on(image) | parse_env(asked["env"]),
        resources=_make_resources(asked),
        as_root=asked["as_root"],
        priority=asked["priority"],
        account=asked["account"],
        gang=_make_gang(asked),
        after=parse_after(asked["after"]) if asked["after"] else (),
        held=asked["hold"],
        begin_at=parse_begin(asked["begin"], now) if asked["begin"] else None,
        max_duration_s=_seconds(asked["max_duration"]),
        warn=parse_warn(asked["warn"]) if asked["warn"] else None,
        start_timeout_s=_seconds(asked["start_timeout"]),
        heartbeat_timeout_s=_seconds(asked["heartbeat_timeout"]),
        retry=retry,
        preemption=Preemption(
            mode=PreemptMode(asked["preempt"]),
            signal=parse_signal(asked["preempt_signal"]),
            grace_s=parse_seconds(asked["preempt_grace"]),
            min_runtime_s=parse_seconds(asked["min_runtime"]),
        ),
        stdout=output,
        stderr=_path(asked["errors"], cwd) or output,
        checkpoint_dir=_path(asked["checkpoint_dir"], cwd),
        secrets=parse_uses(asked["secrets"]),
        image=image,
        own_network=own_network(asked),
        volumes=parse_volumes(asked["volumes"]),
        direct=asked["direct"],
        pool=asked["pool"],
    )


def _name_of(image: str) -> str:
    """Of a job that runs what its image says."""
    return image.rpartition("/")[2].partition("@")[0].partition(":")[0] or "container"


def _passed_on(image: str) -> dict[str, str]:
    """A container's image says itself where programs are."""
    return {} if is_reference(image) else {key: os.environ[key] for key in PASSED_ON if key in os.environ}


def name_image(text: str, folder: str) -> str:
    """A container's as short as it can be written, with relative paths meant from `folder`; the name of one that was built here.
    Raises Refused."""
    if not is_reference(text):
        return text
    for source in (ImageSource.LAYOUT, ImageSource.ARCHIVE):
        name = text.removeprefix(f"{source.value}:")
        if name != text and not name.startswith("/"):
            text = f"{source.value}:{PurePath(folder, name)}"
    return parse_image(text).text


def own_network(asked: Mapping[str, Any]) -> bool:
    """Raises Refused."""
    if asked["network"] == "none" and not is_reference(asked["image"] or ""):
        raise Refused("--network is of containers: name one with --image. Nothing was started.", code="unfit-option")
    return asked["network"] == "none"


def _make_resources(asked: Mapping[str, Any]) -> Resources:
    return Resources(
        cpus=asked["cpus"],
        memory_bytes=_bytes(asked["memory"]),
        exclusive=asked["exclusive"],
        timing=Timing(asked["timing"]),
        max_wakeup_us=asked["max_wakeup_us"],
        preemptible=asked["preemptible"],
        gpus=parse_gpu_demand(asked["gpus"]) if asked["gpus"] else None,
        nics=asked["nics"],
        scratch_bytes=_bytes(asked["scratch"]),
        io_max_bytes_s=_bytes(asked["io_max"]),
    )


def _make_gang(asked: Mapping[str, Any]) -> Gang | None:
    """Any of the three makes it a gang."""
    nodes, tasks, launcher = asked["nodes"], asked["tasks_per_node"], asked["launcher"]
    if nodes is None and tasks is None and launcher is None:
        return None
    return Gang(nodes or 1, tasks or 1, Launcher(launcher or Launcher.NONE.value))


def parse_env(pairs: tuple[str, ...]) -> dict[str, str]:
    """K=V sets, K alone takes the caller's value (nothing where the caller has none)."""
    env: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or "\0" in pair:
            raise Refused(f"{pair!r} is no variable. Write --env NAME=VALUE.", code="bad-env")
        if equals:
            env[key] = value
        elif key in os.environ:
            env[key] = os.environ[key]
    return env


def parse_uses(texts: Iterable[str]) -> tuple[SecretUse, ...]:
    """ "db", "tls:files" -> what a workload asks for; each name once, the last one counts. Raises Refused."""
    found: dict[str, SecretUse] = {}
    for text in texts:
        use = parse_use(text)
        if use is None:
            raise Refused(
                f"{text[:80]!r} names no secret. Write NAME for variables, NAME:files for files or NAME:registry for the login "
                "that its image is fetched with, for example --secret db.",
                code="bad-secret",
            )
        found[use.name] = use
    return tuple(found.values())


def parse_volumes(texts: Iterable[str]) -> tuple[VolumeMount, ...]:
    return tuple(map(parse_mount, texts))


def parse_after(text: str) -> tuple[Dependency, ...]:
    """ "ok:12,any:13_4" -> what to wait for; a bare id means ok."""
    found: list[Dependency] = []
    for part in text.split(","):
        kind, colon, job = part.strip().rpartition(":")
        try:
            found.append(Dependency(JobId(job), DependencyKind(kind) if colon else DependencyKind.OK))
        except ValueError:
            job = ""
        if not job:
            kinds = ", ".join(each.value for each in DependencyKind)
            raise Refused(f"{part!r} is no dependency. Write for example ok:12,any:13 (kinds: {kinds}).", code="bad-after")
    return tuple(found)


def parse_retry(text: str) -> tuple[RetryRule, ...]:
    """ "error:3@30s,oom:1" -> a rule per reason."""
    found: list[RetryRule] = []
    for part in text.split(","):
        on, _, rest = part.strip().partition(":")
        times, at, wait = rest.partition("@")
        if on not in set(RetryOn) or not times.isascii() or not times.isdigit():
            reasons = ", ".join(each.value for each in RetryOn)
            raise Refused(f"{part!r} is no retry rule. Write for example error:3@30s (reasons: {reasons}).", code="bad-retry")
        found.append(RetryRule(RetryOn(on), int(times), parse_seconds(wait) if at else RetryRule(RetryOn(on), 0).backoff_s))
    return tuple(found)


def parse_warn(text: str) -> Warn:
    """ "USR1@60s" -> that signal, a minute before the end."""
    name, at, before = text.partition("@")
    if not at:
        raise Refused(f"{text!r} is no warning. Write for example USR1@60s: a signal, and how long before.", code="bad-warning")
    return Warn(parse_signal(name), parse_seconds(before))


def parse_begin(text: str, now: datetime) -> int:
    """A time (local without an offset) or a duration from now, as microseconds since 1970."""
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        try:
            seconds = parse_seconds(text.removeprefix("+"))
        except Refused:
            raise Refused(
                f"{text!r} is no time. Write for example 2030-01-31T08:00, 2030-01-31T08:00+01:00, or 2h for two hours from now.",
                code="bad-begin",
            ) from None
        return round((now.timestamp() + seconds) * 1e6)
    return round(when.astimezone(UTC).timestamp() * 1e6)


def _seconds(text: str | None) -> float | None:
    return None if text is None else parse_seconds(text)


def _bytes(text: str | None) -> int | None:
    return parse_bytes(text) if text else None


def _path(text: str | None, cwd: str) -> str | None:
    return None if text is None else os.path.normpath(os.path.join(cwd, text))
