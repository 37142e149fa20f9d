"""What does a file of `steelyard apply` ask for? YAML text in, documents out. Pure but for the caller's variables (`make_spec`).

One document is one job, schedule or function. Its keys mean what options of the same meaning mean on the command line, and are
read by the same code. What is misspelt is named with its line; what is impossible is the server's to refuse.
"""

from __future__ import annotations

import difflib
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec

from steelyard.cli.job_options import default_options, make_spec, parse_after
from steelyard.cli.quantities import parse_seconds, parse_share
from steelyard.errors import Refused, SteelyardError
from steelyard.host.fabric.plain_yaml import Plain, PlainMapping, read_plain_documents
from steelyard.model.batch import Dependency
from steelyard.model.function import ScaleOn
from steelyard.model.ids import NAME
from steelyard.model.image import is_reference
from steelyard.model.job import JobSpec, Resources
from steelyard.model.mount import VolumeMount
from steelyard.model.secret import SecretUse
from steelyard.scaling.rollout import ERRORS_MAX

BYTES_MAX = 1 << 20
DOCUMENTS_MAX = 1000

JOB, SCHEDULE, FUNCTION, POOL = "job", "schedule", "function", "pool"


class FunctionAsk(msgspec.Struct, frozen=True):
    """What a function's document asks for, before its code is captured."""

    #: words of `deploy`'s TARGET, a file's by its absolute path
    target: tuple[str, ...]
    #: where a command runs
    workdir: str
    resources: Resources
    env: dict[str, str]
    volumes: tuple[VolumeMount, ...]
    replicas: tuple[int, int]
    concurrency: int | None = None
    target_wait_s: float | None = None
    target_busy: float | None = None
    buffer_replicas: int | None = None
    scale_on: tuple[ScaleOn, ...] = ()
    #: absolute
    weights: str = ""
    idle_timeout_s: float | None = None
    startup_deadline_s: float | None = None
    wake_bound_s: float | None = None
    pool: str = ""
    spread: bool = False
    port: int | None = None
    readiness: str = ""
    python: str | None = None
    image: str = ""
    own_network: bool = False
    public: bool = False
    as_root: bool = False
    secrets: tuple[SecretUse, ...] = ()
    #: of the revision that this makes, see `FunctionDeploy`
    traffic: int = 100
    tag: str = ""
    errors_max: float | None = ERRORS_MAX


class Document(msgspec.Struct, frozen=True):
    kind: str
    name: str
    #: where it stands, for messages
    where: str
    #: of jobs and schedules. `after` of the spec holds names of the file as they were written
    spec: JobSpec | None = None
    array: str | None = None
    project: str = "default"
    cron: str | None = None
    timezone: str = "UTC"
    function: FunctionAsk | None = None


def read_documents(raw: bytes, source: str, folder: str, now: datetime) -> list[Document]:
    """`folder`: where relative paths start. Raises Refused, which names the file and the line."""
    if len(raw) > BYTES_MAX:
        raise Refused(f"{source} is larger than {BYTES_MAX >> 20} MiB. Split it.", code="document-too-large")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as err:
        raise Refused(f"{source} is no UTF-8 text ({err.reason} at byte {err.start}).", code="bad-document") from err
    found = [each for each in read_plain_documents(text, source) if each != ""]
    if not found:
        raise Refused(
            f"{source} holds no document. Write for example `type: job`, `name: x`, `commands: [...]`.", code="no-document"
        )
    if len(found) > DOCUMENTS_MAX:
        raise Refused(f"{source} holds more than {DOCUMENTS_MAX} documents. Split it.", code="document-too-large")
    return [_Reader(each, source, folder, now).read() for each in found]


class _Reader:
    """One document."""

    def __init__(self, content: Plain, source: str, folder: str, now: datetime) -> None:
        if not isinstance(content, PlainMapping):
            raise Refused(f"{source}: a document is a mapping such as `type: job`, not a list or a word.", code="bad-document")
        self._top = content
        self._source = source
        self._folder = folder
        self._now = now

    def read(self) -> Document:
        top = self._top
        kind = self._text(top, "type") if "type" in top else ""
        if kind == POOL:
            raise self._wrong(top.lines["type"], "pools are not in this version; nothing was applied")
        if kind not in _KEYS:
            listed = ", ".join(_KEYS)
            raise self._wrong(top.lines.get("type", top.line), f"`type` must be one of {listed}, not {kind!r}")
        self._refuse_unknown(top, _KEYS[kind], f"a {kind}")
        name = self._text(top, "name") if top.get("name") else ""
        if not NAME.fullmatch(name):
            text = "`name` must be there: up to 63 of a-z, 0-9 and -, with no - at the ends"
            raise self._wrong(top.lines.get("name", top.line), text)
        where = f"{self._source}:{top.line}"
        if kind == FUNCTION:
            return Document(kind, name, where, function=self._read_function(name))
        spec = self._read_spec(name, self._read_command())
        array = self._text(top, "array") if "array" in top else None
        project = self._text(top, "project") if "project" in top else "default"
        if kind == JOB:
            return Document(kind, name, where, spec, array, project)
        if "schedule" not in top:
            raise self._wrong(top.line, "a schedule needs `schedule`, five fields such as 0 3 * * *")
        zone = self._text(top, "timezone") if "timezone" in top else "UTC"
        # the terminal of whoever applies it is no part of it: the same file from elsewhere would be another schedule
        spec = msgspec.structs.replace(spec, env={key: spec.env[key] for key in spec.env if key != "TERM" or key in self._env()})
        return Document(kind, name, where, spec, cron=self._text(top, "schedule"), timezone=zone)

    # jobs

    def _read_command(self) -> tuple[str, ...]:
        top = self._top
        if ("commands" in top) == ("command" in top):
            raise self._wrong(top.line, "exactly one of `commands` (lines of shell) and `command` (words) must be there")
        if "commands" in top:
            lines = self._list(top, "commands")
            return ("/bin/sh", "-c", "\n".join(("set -e", *lines)))
        return self._words("command")

    def _words(self, key: str) -> tuple[str, ...]:
        value = self._top[key]
        if not isinstance(value, str):
            return tuple(self._list(self._top, key))
        try:
            words = tuple(shlex.split(value))
        except ValueError as err:
            raise self._wrong(self._top.lines[key], f"`{key}` can't be split into words: {err}") from err
        if not words:
            raise self._wrong(self._top.lines[key], f"`{key}` is empty")
        return words

    def _read_spec(self, name: str, command: tuple[str, ...]) -> JobSpec:
        """Each key as the option of the command line that means the same."""
        asked: dict[str, Any] = {**default_options(), "name": name}
        resources = self._mapping("resources")
        self._refuse_unknown(resources, _RESOURCES, "resources")
        for mapping, table in ((self._top, _OPTIONS), (resources, _RESOURCES)):
            for key, (option, read) in table.items():
                if key in mapping:
                    asked[option] = read(self, mapping, key)
        asked["env"] = tuple(f"{key}={value}" for key, value in self._env().items())
        folder = self._text(self._top, "workdir") if "workdir" in self._top else "."
        cwd = os.path.normpath(os.path.join(self._folder, folder))
        try:
            spec = make_spec(command, asked, cwd, self._now)
        except SteelyardError as err:
            raise Refused(f"{self._source}:{self._top.line} ({name}): {err.public}", code=err.code) from err
        return msgspec.structs.replace(spec, after=tuple(self._read_after()))

    def _env(self) -> dict[str, str]:
        env = self._mapping("env")
        for key in env:
            if not key or "=" in key or "\0" in key + self._text(env, key):
                raise self._wrong(env.lines[key], f"{key[:60]!r} can't be the name of an environment variable")
        return {key: self._text(env, key) for key in env}

    def _read_after(self) -> list[Dependency]:
        if "after" not in self._top:
            return []
        value = self._top["after"]
        parts = [value] if isinstance(value, str) else self._list(self._top, "after")
        try:
            return [dependency for part in parts for dependency in parse_after(part)]
        except Refused as err:
            raise self._wrong(self._top.lines["after"], err.public) from err

    # functions

    def _read_function(self, name: str) -> FunctionAsk:
        top = self._top
        contained = is_reference(self._text(top, "image") if "image" in top else "")
        if ("target" in top) == ("command" in top) and not (contained and "target" not in top):
            raise self._wrong(top.line, "exactly one of `target` (FILE.py:APP) and `command` must be there")
        if "target" in top:
            target: tuple[str, ...] = (os.path.join(self._folder, self._text(top, "target")),)
        else:
            target = self._words("command") if "command" in top else ()  # else what the image says
        like_job = self._read_spec(name, target)
        return FunctionAsk(
            target=target,
            workdir=like_job.cwd,
            resources=like_job.resources,
            env=self._env(),
            volumes=like_job.volumes,
            replicas=self._replicas(),
            concurrency=self._number(top, "concurrency") if "concurrency" in top else None,
            target_wait_s=self._seconds("target_wait"),
            target_busy=self._amount(top, "target_busy") if "target_busy" in top else None,
            buffer_replicas=self._number(top, "buffer_replicas") if "buffer_replicas" in top else None,
            scale_on=self._scale_on(),
            weights=os.path.normpath(os.path.join(self._folder, self._text(top, "weights"))) if "weights" in top else "",
            idle_timeout_s=self._seconds("idle_timeout"),
            startup_deadline_s=self._seconds("startup_deadline"),
            wake_bound_s=self._seconds("wake_bound"),
            pool=self._text(top, "pool") if "pool" in top else "",
            spread=self._truth(top, "spread") if "spread" in top else False,
            port=self._number(top, "port") if "port" in top else None,
            readiness=self._text(top, "readiness") if "readiness" in top else "",
            python=self._text(top, "python") if "python" in top else None,
            image=like_job.image,
            own_network=like_job.own_network,
            public=self._truth(top, "public") if "public" in top else False,
            as_root=like_job.as_root,
            secrets=like_job.secrets,
            traffic=self._percent(),
            tag=self._text(top, "tag") if "tag" in top else "",
            errors_max=self._share("rollback_errors"),
        )

    def _percent(self) -> int:
        percent = self._number(self._top, "traffic") if "traffic" in self._top else 100
        if percent > 100:
            raise self._wrong(self._top.lines["traffic"], f"`traffic` is per cent, 0 to 100, not {percent}")
        return percent

    def _share(self, key: str) -> float | None:
        if key not in self._top:
            return ERRORS_MAX
        try:
            return parse_share(self._text(self._top, key))
        except Refused as err:
            raise self._wrong(self._top.lines[key], err.public) from err

    def _replicas(self) -> tuple[int, int]:
        """ "0..8" or "2" (exactly two)."""
        if "replicas" not in self._top:
            return 0, 1
        low, dots, high = self._text(self._top, "replicas").partition("..")
        if not _is_number(low) or (dots and not _is_number(high)):
            raise self._wrong(self._top.lines["replicas"], "`replicas` is written 0..8, or 2 for always two")
        return int(low), int(high) if dots else max(1, int(low))

    def _scale_on(self) -> tuple[ScaleOn, ...]:
        """A list of {metric, target}."""
        found: list[ScaleOn] = []
        rows = self._top.get("scale_on", [])
        for row in rows if isinstance(rows, list) else [rows]:
            if not isinstance(row, PlainMapping) or {*row} != {"metric", "target"}:
                text = "`scale_on` is a list of metrics, each such as {metric: vllm:num_requests_waiting, target: 4}"
                raise self._wrong(self._top.lines["scale_on"], text)
            found.append(ScaleOn(self._text(row, "metric"), self._amount(row, "target")))
        return tuple(found)

    def _seconds(self, key: str) -> float | None:
        if key not in self._top:
            return None
        try:
            return parse_seconds(self._text(self._top, key))
        except Refused as err:
            raise self._wrong(self._top.lines[key], err.public) from err

    # values

    def _text(self, mapping: PlainMapping, key: str) -> str:
        value = mapping[key]
        if not isinstance(value, str):
            raise self._wrong(mapping.lines[key], f"`{key}` is text, not a list or a mapping")
        return value

    def _number(self, mapping: PlainMapping, key: str) -> int:
        text = self._text(mapping, key)
        if not _is_number(text):
            raise self._wrong(mapping.lines[key], f"`{key}` is a whole number, not {text[:40]!r}")
        return int(text)

    def _amount(self, mapping: PlainMapping, key: str) -> float:
        text = self._text(mapping, key)
        try:
            return float(text)
        except ValueError:
            raise self._wrong(mapping.lines[key], f"`{key}` is a number, not {text[:40]!r}") from None

    def _truth(self, mapping: PlainMapping, key: str) -> bool:
        text = self._text(mapping, key)
        if text not in ("true", "false"):
            raise self._wrong(mapping.lines[key], f"`{key}` is true or false, not {text[:40]!r}")
        return text == "true"

    def _retry(self, mapping: PlainMapping, key: str) -> str:
        """A rule as on the command line, a list of them, or a number: so many times after an error."""
        value = mapping[key]
        if isinstance(value, str):
            return f"error:{value}" if _is_number(value) else value
        return ",".join(self._list(mapping, key))

    def _choice(self, mapping: PlainMapping, key: str) -> str:
        text, known = self._text(mapping, key), _CHOICES[key]
        if text not in known:
            raise self._wrong(mapping.lines[key], f"`{key}` is one of {', '.join(known)}, not {text[:40]!r}")
        return text

    def _list(self, mapping: PlainMapping, key: str) -> list[str]:
        value = mapping[key]
        if not isinstance(value, list) or not value or not all(isinstance(each, str) for each in value):
            raise self._wrong(mapping.lines[key], f"`{key}` is a list of texts")
        return [each for each in value if isinstance(each, str)]

    def _mapping(self, key: str) -> PlainMapping:
        value = self._top.get(key, PlainMapping(self._top.line))
        if not isinstance(value, PlainMapping):
            raise self._wrong(self._top.lines[key], f"`{key}` is a mapping such as `{key}: {{a: b}}`")
        return value

    def _refuse_unknown(self, mapping: PlainMapping, known: Sequence[str] | Mapping[str, object], what: str) -> None:
        for key in mapping:
            if what == f"a {FUNCTION}" and key in _IN_FILES:
                raise self._wrong(mapping.lines[key], f"`{key}` of a function {_IN_FILES[key]}")
            if key not in known:
                near = difflib.get_close_matches(key, list(known), 1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(known)}"
                raise self._wrong(mapping.lines[key], f"{what} has no {key[:60]!r}{hint}")

    def _wrong(self, line: int, text: str) -> Refused:
        return Refused(f"{self._source}:{line}: {text}", code="bad-document")


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 9


_Read = Callable[[_Reader, PlainMapping, str], object]

_CHOICES = {
    "timing": ("best-effort", "dedicated", "realtime"),
    "network": ("host", "none"),
    "launcher": ("none", "torchrun", "mpi"),
    "preempt": ("requeue", "suspend", "cancel"),
}

#: key of `resources` -> option of the command line, and how its value is read
_RESOURCES: dict[str, tuple[str, _Read]] = {
    "cpu": ("cpus", _Reader._amount),
    "memory": ("memory", _Reader._text),
    "gpu": ("gpus", _Reader._text),
    "exclusive": ("exclusive", _Reader._truth),
    "timing": ("timing", _Reader._choice),
    "max_wakeup_us": ("max_wakeup_us", _Reader._number),
    "nics": ("nics", _Reader._number),
    "scratch": ("scratch", _Reader._text),
    "io_max": ("io_max", _Reader._text),
}
_OPTIONS: dict[str, tuple[str, _Read]] = {
    "image": ("image", _Reader._text),
    "network": ("network", _Reader._choice),
    "pool": ("pool", _Reader._text),
    "nodes": ("nodes", _Reader._number),
    "tasks_per_node": ("tasks_per_node", _Reader._number),
    "launcher": ("launcher", _Reader._choice),
    "priority": ("priority", _Reader._number),
    "account": ("account", _Reader._text),
    "hold": ("hold", _Reader._truth),
    "begin": ("begin", _Reader._text),
    "max_duration": ("max_duration", _Reader._text),
    "warn": ("warn", _Reader._text),
    "start_timeout": ("start_timeout", _Reader._text),
    "heartbeat_timeout": ("heartbeat_timeout", _Reader._text),
    "retry": ("retry", _Reader._retry),
    "requeue": ("requeue", _Reader._truth),
    "preemptible": ("preemptible", _Reader._truth),
    "preempt": ("preempt", _Reader._choice),
    "preempt_signal": ("preempt_signal", _Reader._text),
    "preempt_grace": ("preempt_grace", _Reader._text),
    "min_runtime": ("min_runtime", _Reader._text),
    "checkpoint_dir": ("checkpoint_dir", _Reader._text),
    "output": ("output", _Reader._text),
    "error": ("errors", _Reader._text),
    "as_root": ("as_root", _Reader._truth),
    "secrets": ("secrets", _Reader._list),
    "volumes": ("volumes", _Reader._list),
}
_COMMON = ("type", "name", "resources", "env", "image", "network")
_RUNS = tuple(dict.fromkeys((*_COMMON, "commands", "command", "workdir", *_OPTIONS)))
_KEYS: dict[str, tuple[str, ...]] = {
    JOB: (*_RUNS, "array", "after", "project"),
    SCHEDULE: (*(key for key in _RUNS if key != "begin"), "schedule", "timezone"),
    FUNCTION: (
        *_COMMON, "target", "command", "workdir", "replicas", "concurrency", "idle_timeout", "startup_deadline", "wake_bound",
        "target_wait", "target_busy", "buffer_replicas", "scale_on", "weights", "pool", "spread",
        "port", "readiness", "python", "public", "as_root", "secrets", "volumes", "traffic", "tag", "rollback_errors",
    ),
}  # fmt: skip
#: of functions that are called rather than asked over HTTP; those are declared in Python
_CALLED = "is said where it is declared: @app.function({}=...) in its file, which `steelyard deploy FILE.py` reads"
_IN_FILES = {
    "schedule": f"{_CALLED.format('schedule')}. For a job by the clock write `type: schedule`",
    "retries": _CALLED.format("retries"),
    "timeout": _CALLED.format("timeout"),
    "app": "is its file's: `steelyard deploy FILE.py` deploys all that an app declares",
}
