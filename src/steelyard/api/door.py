"""Is what was asked for possible at all? Pure checks at the door, before anything is stored. Findings, never exceptions.

What only the kernel or the user's code can tell (the command exists, the module imports) is not checked here. What fits the
machine but not now is no finding: it waits in the queue.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import lru_cache
from typing import cast

import msgspec
import msgspec.inspect

from steelyard.errors import Refused
from steelyard.model.function import FunctionSpec
from steelyard.model.gpu_demand import check_gpu_demand
from steelyard.model.ids import JOB_NAME, NAME
from steelyard.model.image import parse_image
from steelyard.model.job import JobSpec, Resources, Terminal
from steelyard.model.machine import Machine
from steelyard.model.secret import USES_MAX, SecretUse
from steelyard.model.timing import Timing
from steelyard.placement.gang import place_spec
from steelyard.placement.machine import Refusal, place
from steelyard.placement.room import Room
from steelyard.wire.spawn import PACKET_MAX

#: what POSIX shells can name, plus the dots and dashes that some programs use
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,254}")
_METRIC = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]{0,199}", re.ASCII)
#: as many as a replica's page has room for
_METRICS_MAX = 8
_TERM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}", re.ASCII)
#: of a terminal: the kernel counts them in 16 bits
_WINDOW_MAX = 65_535
_SHA256 = re.compile(r"[0-9a-f]{64}")
#: what a request line can hold
_READINESS = re.compile(r"/[!-~]{0,1023}", re.ASCII)
_ATTRIBUTE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
#: the kernel's limit for one argument or variable (MAX_ARG_STRLEN), with its final NUL
_STRING_MAX = 131_071
#: arguments and environment travel to the spawner in one packet; the rest of it needs some room
_COMMAND_MAX = PACKET_MAX - 20_000
_SECONDS_MAX = 30 * 24 * 3600
_REPLICAS_MAX = 1000
#: listen(4096): more connections than that can't wait at one socket
_RETRIES_MAX = 100
_CONCURRENCY_MAX = 4096
_MEMORY_MIN = 1 << 20
#: below this a program could not even be read from its disk
_IO_MIN = 64 << 10
#: ten seconds: a promise beyond that says nothing
_WAKEUP_US_MAX = 10_000_000
#: more than any machine holds
_NICS_MAX = 256


class Finding(msgspec.Struct, frozen=True):
    #: stable, scripted against
    code: str
    text: str


NO_CONTAINERS = Finding(
    "bad-pool",
    "containers need root, and machines of pools have what Steelyard has: start it as root, or name an image that was built here "
    "(`steelyard image build`)",
)


def check_job(spec: JobSpec, machine: Machine | None, root: bool) -> list[Finding]:
    """`machine` is None until the first agent came; then only what no machine could do is found."""
    findings: list[Finding] = []
    if not JOB_NAME.fullmatch(spec.name):
        findings.append(Finding("bad-name", "a job's name has 1 to 100 characters and neither slashes nor control characters"))
    if not spec.argv and spec.script is None and not spec.contained:
        findings.append(Finding("no-command", "there is no command to run: argv is empty"))
    findings += _check_command(spec.argv, {**spec.env, **spec.slurm})
    findings += check_folder("cwd", spec.cwd) if spec.cwd or not spec.contained else []
    findings += _check_image(spec)
    findings += _check_gang_place(spec, machine) or _check_resources(spec.resources, machine)
    findings += _check_secrets(spec.secrets)
    findings += _check_root(spec.as_root, root)
    findings += _check_terminal(spec.terminal)
    if spec.terminal is not None and (spec.gang is not None or spec.stdout is not None or spec.stderr is not None):
        findings.append(Finding("bad-terminal", "a terminal is for one process, and takes the place of output files"))
    return findings


def _check_image(spec: JobSpec | FunctionSpec) -> list[Finding]:
    if not spec.contained:
        if spec.own_network:
            return [Finding("no-container", "a network of its own is for containers: name an image")]
        if any(use.for_registry for use in spec.secrets):
            return [Finding("no-container", "a login at a registry is for containers: name an image")]
        return []
    findings: list[Finding] = []
    try:
        parse_image(spec.image)
    except Refused as err:
        findings.append(Finding(err.code, err.public))
    if spec.as_root:
        text = "root of the machine gets no container; leave as_root away: inside it may be root"
        findings.append(Finding("root-container", text))
    if spec.own_network and spec.resources.nics:
        text = "network cards are the machine's network's: a container with --network none can't have any"
        findings.append(Finding("cards-no-network", text))
    return findings


def check_exec(argv: tuple[str, ...], terminal: Terminal | None) -> list[Finding]:
    if not argv:
        return [Finding("no-command", "there is no command to run: argv is empty")]
    return [*_check_command(argv, {}), *_check_terminal(terminal)]


def _check_terminal(terminal: Terminal | None) -> list[Finding]:
    if terminal is None:
        return []
    findings: list[Finding] = []
    if not (1 <= terminal.rows <= _WINDOW_MAX and 1 <= terminal.columns <= _WINDOW_MAX):
        findings.append(Finding("bad-terminal", f"a terminal has 1 to {_WINDOW_MAX} rows and columns"))
    if not _TERM.fullmatch(terminal.kind):
        findings.append(Finding("bad-terminal", f"{terminal.kind[:80]!r} is no kind of terminal, such as xterm-256color"))
    return findings


def check_function(name: str, spec: FunctionSpec, machine: Machine | None, root: bool) -> list[Finding]:
    findings: list[Finding] = []
    if not NAME.fullmatch(name):
        text = f"{name[:80]!r} can't be a function's name (a host name): up to 63 of a-z, 0-9 and -, no - at the ends"
        findings.append(Finding("bad-name", text))
    if spec.app and not NAME.fullmatch(spec.app):
        findings.append(Finding("bad-app", f"{spec.app[:80]!r} can't be the name of an app: up to 63 of a-z, 0-9 and -"))
    if len(spec.origin) > 4096 or "\0" in spec.origin:
        findings.append(Finding("bad-origin", "origin is the path of the file that declares the app"))
    findings += _check_program(spec)
    findings += _check_image(spec)
    findings += _check_command(spec.argv, spec.env)
    if spec.resources.exclusive:
        findings.append(Finding("exclusive-function", "a function that wants cores of its own asks for the timing `dedicated`"))
    if spec.resources.timing is Timing.REALTIME:
        findings.append(Finding("realtime-function", "realtime is for jobs; the strictest timing of a function is `dedicated`"))
    if spec.resources.gpus is not None and spec.resources.gpus.fraction is not None:
        text = "a function's share of a GPU would be enforced by nothing: ask for a whole GPU or a MIG instance"
        findings.append(Finding("fraction-function", text))
    if spec.resources.max_wakeup_us is not None:
        findings.append(Finding("watched-function", "max_wakeup_us is watched for jobs only"))
    if spec.resources.scratch_bytes is not None or spec.resources.io_max_bytes_s is not None:
        findings.append(Finding("scratch-function", "scratch space and limits of disk traffic are for jobs only"))
    findings += _check_resources(spec.reserved or spec.resources, machine)
    findings += _check_replicas(spec)
    findings += _check_secrets(spec.secrets)
    findings += _check_root(spec.as_root, root)
    return findings


def check_function_pool(
    name: str, spec: FunctionSpec, before: FunctionSpec | None, pools: AbstractSet[str], root: bool
) -> list[Finding]:
    """`before`: of the newest revision that there is; `pools`: names of those that there are; `root`: Steelyard runs as root."""
    findings: list[Finding] = []
    if before is not None and before.pool != spec.pool:
        there = f"in the pool {before.pool}" if before.pool else "on the home's own machine"
        text = f"{name} is {there}, and revisions of one function are not in two places: delete it first, or choose another name"
        findings.append(Finding("pool-changed", text))
    if spec.spread and not spec.pool:
        findings.append(Finding("bad-spread", "spread puts a function on all machines of a pool: name the pool too"))
    if not spec.pool:
        return findings
    if spec.pool not in pools:
        known = f"there are {', '.join(sorted(pools))}" if pools else "there is none"
        findings.append(Finding("no-such-pool", f"there is no pool {spec.pool[:80]}: {known}"))
    if spec.contained and not root:
        findings.append(NO_CONTAINERS)
    if spec.wake_bound_s is not None:
        findings.append(Finding("bad-pool", "what a function has on machines of a pool is not lent: leave wake_bound out"))
    return findings


def check_fields(raw: bytes, model: type[msgspec.Struct]) -> list[Finding]:
    """Names inside `spec`, at any depth, that no field has: a misspelt option is named instead of silently dropped."""
    spec = msgspec.json.decode(raw, type=dict[str, object]).get("spec")
    unknown = _find_unknown(spec, _describe(model), "")
    return [Finding("unknown-field", f"spec has no field {name[:80]!r}") for name in unknown]


@lru_cache(maxsize=8)
def _describe(model: type[msgspec.Struct]) -> msgspec.inspect.Type:
    """A millisecond of work, for each request the same."""
    return msgspec.inspect.type_info(model)


def _find_unknown(value: object, kind: msgspec.inspect.Type, at: str) -> Iterator[str]:
    match kind, value:
        case msgspec.inspect.UnionType(types=types), _:
            for each in types:
                yield from _find_unknown(value, each, at)
        case msgspec.inspect.VarTupleType(item_type=item), list():
            for place, each in enumerate(cast("list[object]", value)):
                yield from _find_unknown(each, item, f"{at.removesuffix('.')}[{place}].")
        case msgspec.inspect.StructType(fields=fields), dict():
            kinds = {field.encode_name: field.type for field in fields}
            for name, each in sorted(cast("dict[str, object]", value).items()):
                if name in kinds:
                    yield from _find_unknown(each, kinds[name], f"{at}{name}.")
                else:
                    yield f"{at}{name}"
        case _:
            return


def _check_program(spec: FunctionSpec) -> list[Finding]:
    findings: list[Finding] = []
    if (spec.file is not None) == bool(spec.argv) and not (spec.contained and spec.file is None):
        findings.append(Finding("no-program", "a function is either file and attr (an ASGI app) or argv (a program)"))
    if spec.file is not None:
        parts = spec.file.split("/")
        if not spec.file or spec.file.startswith("/") or ".." in parts or "\0" in spec.file or len(spec.file) > 1024:
            findings.append(Finding("bad-file", "file is a path inside the bundle, with no .. in it"))
        if spec.attr is None or len(spec.attr) > 255 or not _ATTRIBUTE.fullmatch(spec.attr):
            findings.append(Finding("bad-attr", "attr names the ASGI app inside the file, such as `app`"))
        if spec.port is not None and spec.interface == "call":
            findings.append(Finding("bad-port", "a function that takes calls gets its socket from Steelyard: it opens no port"))
        if not spec.python and not spec.image:
            findings.append(
                Finding("bad-python", "python must name the interpreter of the function's environment, or image one that has it")
            )
    if spec.python:
        findings += [Finding("bad-python", finding.text) for finding in check_folder("python", spec.python)]
    if spec.weights:
        findings += check_folder("weights", spec.weights)
    if spec.readiness and not _READINESS.fullmatch(spec.readiness):
        findings.append(Finding("bad-readiness", "readiness is a path such as /health, without spaces"))
    if spec.readiness and spec.served_by_runner:
        text = "readiness is for programs: a web app of Python is ready when its startup and `@sy.enter` are done"
        findings.append(Finding("bad-readiness", text))
    if spec.port is not None and not 0 <= spec.port <= 65535:
        findings.append(Finding("bad-port", "port must be between 1 and 65535, or 0 for a free one, which is told as PORT"))
    if spec.port and spec.replicas_max > 1 and not spec.own_network:
        text = "only one replica on a machine can open the port: replicas_max must be 1, or port 0, a free one for each as $PORT"
        findings.append(Finding("bad-port", text))
    if spec.bundle is None and (spec.file is not None if spec.contained else spec.cwd is None):
        findings.append(Finding("no-code", "a function needs its code: a bundle, or a cwd to run in"))
    if spec.bundle is not None and not _SHA256.fullmatch(spec.bundle):
        findings.append(Finding("bad-bundle", "a bundle is named by its sha256, 64 hex digits"))
    if spec.cwd is not None:
        findings += check_folder("cwd", spec.cwd)
    return findings


def _check_replicas(spec: FunctionSpec) -> list[Finding]:
    findings: list[Finding] = []
    if not 0 <= spec.replicas_min <= spec.replicas_max:
        findings.append(Finding("bad-replicas", "replicas_min must be at least 0 and at most replicas_max"))
    if not 1 <= spec.replicas_max <= _REPLICAS_MAX:
        findings.append(Finding("bad-replicas", f"replicas_max must be between 1 and {_REPLICAS_MAX}"))
    if not 1 <= spec.concurrency <= _CONCURRENCY_MAX:
        findings.append(Finding("bad-concurrency", f"concurrency must be between 1 and {_CONCURRENCY_MAX}"))
    findings += [*_check_wake_bound(spec), *_check_scaling(spec)]
    for name, value in (("idle_timeout_s", spec.idle_timeout_s), ("startup_deadline_s", spec.startup_deadline_s)):
        if not 0 < value <= _SECONDS_MAX:
            findings.append(Finding("bad-timeout", f"{name} must be more than 0 and at most {_SECONDS_MAX} seconds"))
    if spec.timeout_s is not None and not 0 < spec.timeout_s <= _SECONDS_MAX:
        findings.append(Finding("bad-timeout", f"timeout_s must be more than 0 and at most {_SECONDS_MAX} seconds"))
    if not 0 <= spec.retries <= _RETRIES_MAX:
        findings.append(Finding("bad-retries", f"retries must be between 0 and {_RETRIES_MAX}"))
    return findings


def _check_scaling(spec: FunctionSpec) -> list[Finding]:
    findings: list[Finding] = []
    if spec.target_wait_ms is not None and not 0 < spec.target_wait_ms <= _SECONDS_MAX * 1000:
        findings.append(Finding("bad-target-wait", f"target_wait_ms must be more than 0 and at most {_SECONDS_MAX} seconds"))
    if not 0 < spec.target_busy <= 1:
        findings.append(Finding("bad-target-busy", "target_busy is a share of a replica's places: more than 0 and at most 1"))
    if not 0 <= spec.buffer_replicas < max(1, spec.replicas_max):
        findings.append(Finding("bad-buffer", "buffer_replicas must be at least 0 and less than replicas_max"))
    names = [on.metric for on in spec.scale_on]
    if not all(_METRIC.fullmatch(on.metric) and math.isfinite(on.target) and on.target > 0 for on in spec.scale_on):
        findings.append(Finding("bad-scale-on", "scale_on names a Prometheus gauge or counter, and a target above 0"))
    if len(names) > _METRICS_MAX or len(set(names)) < len(names):
        findings.append(Finding("bad-scale-on", f"scale_on holds at most {_METRICS_MAX} metrics, each once"))
    if names and spec.served_by_runner:
        text = "scale_on reads the page /metrics of a program: of a web app of Python, what is busy and waits is known already"
        findings.append(Finding("bad-scale-on", text))
    return findings


def _check_wake_bound(spec: FunctionSpec) -> list[Finding]:
    if spec.wake_bound_s is None:
        return []
    findings: list[Finding] = []
    if spec.reserved is None:
        text = "wake_bound lends cores and devices that a function has to itself: ask for the timing `dedicated`, or for GPUs"
        findings.append(Finding("wake-bound-without-place", text))
    if spec.replicas_min > 0:
        text = "a function with replicas_min above 0 never sleeps, so it has nothing to lend: leave wake_bound out"
        findings.append(Finding("wake-bound-never-asleep", text))
    if not 0 < spec.wake_bound_s < spec.startup_deadline_s:
        text = "wake_bound must be more than 0 and less than the startup deadline, which counts from the wake too"
        findings.append(Finding("bad-wake-bound", text))
    return findings


def _check_resources(asked: Resources, machine: Machine | None) -> list[Finding]:
    findings: list[Finding] = []
    if not math.isfinite(asked.cpus) or asked.cpus <= 0:
        findings.append(Finding("bad-cpus", "cpus must be more than 0"))
    elif asked.whole_cores and asked.cpus % 1:
        findings.append(Finding("bad-cpus", "exclusive cores are whole: cpus must be a whole number"))
    if asked.preemptible and asked.whole_cores:
        findings.append(
            Finding("bad-timing", "preemptible work gives way, so it can't have cores to itself: ask for one of both")
        )
    if asked.memory_bytes is not None and not _MEMORY_MIN <= asked.memory_bytes < 1 << 60:
        findings.append(Finding("bad-memory", "memory must be at least 1 MiB and less than 1 EiB"))
    if asked.max_wakeup_us is not None and not 1 <= asked.max_wakeup_us <= _WAKEUP_US_MAX:
        findings.append(Finding("bad-max-wakeup", f"max_wakeup_us must be between 1 and {_WAKEUP_US_MAX}"))
    if asked.scratch_bytes is not None and not _MEMORY_MIN <= asked.scratch_bytes < 1 << 60:
        findings.append(Finding("bad-scratch", "scratch must be at least 1 MiB and less than 1 EiB"))
    if asked.io_max_bytes_s is not None and not _IO_MIN <= asked.io_max_bytes_s < 1 << 60:
        findings.append(Finding("bad-io-max", "io_max_bytes_s must be at least 64 KiB and less than 1 EiB a second"))
    if asked.gpus is not None and (wrong := check_gpu_demand(asked.gpus)):
        findings.append(Finding("bad-gpus", wrong))
    if not 0 <= asked.nics <= _NICS_MAX:
        findings.append(Finding("bad-nics", f"nics must be between 0 and {_NICS_MAX}"))
    if findings or machine is None:
        return findings
    # What is out of use now, or not free yet, is only waited for.
    answer = place(msgspec.structs.replace(machine, blocked=(), blocked_pairs=(), held=()), (), asked)
    if isinstance(answer, Refusal):
        findings += [Finding(reason.value, answer.detail) for reason in answer.reasons]
    return findings


def _check_gang_place(spec: JobSpec, machine: Machine | None) -> list[Finding]:
    """A gang that this site can never hold; what its ranks ask for one by one is `_check_resources`'."""
    if spec.gang is None or machine is None:
        return []
    answer = place_spec(Room(msgspec.structs.replace(machine, blocked=(), blocked_pairs=(), held=())), spec)
    if not isinstance(answer, Refusal) or not answer.never:
        return []
    return [Finding(reason.value, answer.detail) for reason in answer.reasons]


def _check_command(argv: Sequence[str], env: Mapping[str, str]) -> list[Finding]:
    findings: list[Finding] = []
    if argv and not argv[0]:
        findings.append(Finding("no-command", "the command's first word is empty"))
    for name in env:
        if not _ENV_NAME.fullmatch(name):
            findings.append(Finding("bad-env", f"{name[:80]!r} can't be the name of an environment variable"))
    words = (*argv, *(f"{name}={value}" for name, value in env.items()))
    if any("\0" in word for word in words):
        findings.append(Finding("nul-byte", "arguments and environment can't hold NUL characters"))
    sizes = [len(word.encode(errors="surrogatepass")) for word in words]
    if any(size > _STRING_MAX for size in sizes) or sum(sizes) + 8 * len(sizes) > _COMMAND_MAX:
        text = (
            f"arguments and environment are too long: {_STRING_MAX} bytes each, about {_COMMAND_MAX} in all; put them into a file"
        )
        findings.append(Finding("command-too-long", text))
    return findings


def _check_secrets(uses: Sequence[SecretUse]) -> list[Finding]:
    names = [use.name for use in uses]
    if len(names) > USES_MAX or len(set(names)) < len(names):
        text = f"secrets are named once each, {USES_MAX} at most"
        return [Finding("bad-secret", text)]
    return [
        Finding("bad-secret", f"{name[:80]!r} can't be a secret's name: up to 63 of a-z, 0-9 and -, with no - at the ends")
        for name in names
        if not NAME.fullmatch(name)
    ]


def check_folder(field: str, path: str) -> list[Finding]:
    if not path.startswith("/") or "\0" in path or len(path) > 4096:
        return [Finding("bad-path", f"{field} must be an absolute path")]
    return []


def _check_root(asked: bool, root: bool) -> list[Finding]:
    if asked and not root:
        return [Finding("not-root", "as_root needs a Steelyard that runs as root; this one does not")]
    return []
