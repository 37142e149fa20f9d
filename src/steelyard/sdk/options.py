"""What may be said in `@app.function(...)` and `@app.cls(...)`? Every option, its other spellings, and what is refused.

`read_options` takes the keywords as written and returns the canonical values, all of them plain JSON (units in the names).
DeclarationError names the option, what is wrong with it, and what to write. Whether a machine can give it is asked at deploy.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

from steelyard.sdk.errors import DeclarationError
from steelyard.sdk.nouns import Cron, Every, Secret, Volume, check_name

if TYPE_CHECKING:
    from steelyard.sdk.image import Image

Duration = str | float


class FunctionOptions(TypedDict, total=False):
    """For editors and type checkers. The second block holds Modal's spellings."""

    name: str
    #: cores' worth of share for each replica
    cpu: float
    #: limit of each replica: "8GB", "512MiB"; a number counts MiB
    memory: str | int
    #: "1", "H100:2", "24GB"
    gpu: str
    timing: str
    env: Mapping[str, str]
    #: a text is a name: variables
    secrets: Sequence[Secret | str]
    #: absolute path -> what is mounted there
    volumes: Mapping[str, Volume]
    #: interpreter of the code's environment, or the environment itself
    python: str
    image: Image
    min_replicas: int
    max_replicas: int
    buffer_replicas: int
    idle_timeout: Duration
    startup_deadline: Duration
    #: of one input
    timeout: Duration | None
    #: of one input, after a lost replica, a timeout or an exception
    retries: int
    #: inputs that one replica works on at a time
    concurrency: int
    target_wait_ms: float
    target_busy: float
    #: of a server: metrics of its page /metrics, and how much of each one replica should have
    scale_on: Mapping[str, float]
    #: a file or folder (absolute) that each start reads: kept in the page cache while it sleeps
    weights: str
    wake_bound: Duration
    #: on a machine of that pool, or with `spread` on all of them
    pool: str
    spread: bool
    public: bool
    schedule: Cron | Every

    cpus: float
    gpus: str
    min_containers: int
    keep_warm: int
    max_containers: int
    concurrency_limit: int
    buffer_containers: int
    scaledown_window: Duration
    container_idle_timeout: Duration
    startup_timeout: Duration
    allow_concurrent_inputs: int


#: other spelling -> ours
ALIASES = {
    "cpus": "cpu",
    "gpus": "gpu",
    "min_containers": "min_replicas",
    "keep_warm": "min_replicas",
    "max_containers": "max_replicas",
    "concurrency_limit": "max_replicas",
    "buffer_containers": "buffer_replicas",
    "scaledown_window": "idle_timeout",
    "container_idle_timeout": "idle_timeout",
    "startup_timeout": "startup_deadline",
    "allow_concurrent_inputs": "concurrency",
}

#: of Modal, without a meaning on one's own machines: said instead of "unknown"
_ELSEWHERE = {
    "mounts": "the folder of the file is captured as a whole, minus what .gitignore names",
    "region": "the machines are yours; there are no regions",
    "cloud": "the machines are yours; there is no cloud to choose",
    "proxy": "replicas use the machine's own network",
    "enable_memory_snapshot": "replicas are always forked from a prepared template; `@sy.enter(shared=True)` fills it",
    "secret": "secrets are a list: `secrets=[sy.Secret.from_name('name')]`",
    "network_file_systems": "`steelyard volumes create NAME --path DIR` makes a folder on one a volume, for volumes=",
    "serialized": "functions are found by name in their module; deploy the file",
}


def read_options(options: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Canonical options of what was written; absent ones are left out. `where` names the function for error texts."""
    given: dict[str, tuple[str, Any]] = {}
    for written, value in options.items():
        name = ALIASES.get(written, written)
        if name not in _READERS:
            raise DeclarationError(f"{where}: {_explain_unknown(written)}")
        if name in given:
            raise DeclarationError(f"{where}: '{given[name][0]}' and '{written}' mean the same. Write one of them.")
        given[name] = (written, value)
    read: dict[str, Any] = {}
    for name, (written, value) in given.items():
        try:
            key, canonical = _READERS[name](value)
        except DeclarationError as err:
            raise DeclarationError(f"{where}: {written}={value!r}: {err}") from None
        read[key] = canonical
    if "python" in read and "image" in read:
        raise DeclarationError(f"{where}: an image brings its own Python: leave out python= or image=.")
    least, most = read.get("replicas_min", 0), read.get("replicas_max")
    if most is not None and least > most:
        raise DeclarationError(f"{where}: min_replicas {least} is more than max_replicas {most}.")
    return read


def _explain_unknown(name: str) -> str:
    if name in _ELSEWHERE:
        return f"'{name}' has no meaning here: {_ELSEWHERE[name]}."
    import difflib  # imported here: it is for mistakes

    near = difflib.get_close_matches(name, [*_READERS, *ALIASES], 1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return f"there is no option '{name}'.{hint} Options: {', '.join(sorted(_READERS))}."


Reader = Callable[[Any], "tuple[str, Any]"]


def _whole(key: str, least: int, most: int) -> Reader:
    def read(value: Any) -> tuple[str, Any]:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise DeclarationError(f"it is a whole number from {least} to {most}.")
        return key, value

    return read


def _number(key: str, least: float, most: float) -> Reader:
    def read(value: Any) -> tuple[str, Any]:
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise DeclarationError(f"it is a number from {least:g} to {most:g}.")
        return key, float(value)

    return read


def _seconds(key: str, least: float = 0.0) -> Reader:
    def read(value: Any) -> tuple[str, Any]:
        seconds = read_seconds(value)
        if seconds < least:
            raise DeclarationError(f"at least {least:g} s.")
        return key, seconds

    return read


def _timeout(value: Any) -> tuple[str, Any]:
    return ("timeout_s", None) if value is None else _seconds("timeout_s", 0.001)(value)


def _text(key: str, *allowed: str) -> Reader:
    def read(value: Any) -> tuple[str, Any]:
        if not isinstance(value, str) or not value or (allowed and value not in allowed):
            raise DeclarationError(f"it is {'one of ' + ', '.join(allowed) if allowed else 'a text'}.")
        return key, value

    return read


def _gpu(value: Any) -> tuple[str, Any]:
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return "gpus", str(value)
    return _text("gpus")(value)


def _memory(value: Any) -> tuple[str, Any]:
    if isinstance(value, int) and not isinstance(value, bool):
        if not 0 < value <= 64 << 20:
            raise DeclarationError("a number counts MiB. Write the unit, such as '8GB' or '512MiB'.")
        return "memory_bytes", value << 20
    return "memory_bytes", read_bytes(value)


def _flag(key: str) -> Reader:
    def read(value: Any) -> tuple[str, Any]:
        if not isinstance(value, bool):
            raise DeclarationError("it is True or False.")
        return key, value

    return read


def _name(value: Any) -> tuple[str, Any]:
    return "name", check_name(value, "a function")


def _env(value: Any) -> tuple[str, Any]:
    if not isinstance(value, Mapping):
        raise DeclarationError("it is a dict of variables.")
    for name, text in value.items():
        if not isinstance(name, str) or not isinstance(text, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise DeclarationError(f"{name!r}: {text!r} is no variable; name and value are texts.")
        if "\0" in text:
            raise DeclarationError(f"{name!r} holds a zero byte.")
    return "env", dict(value)


def _scale_on(value: Any) -> tuple[str, Any]:
    known = isinstance(value, Mapping) and all(isinstance(metric, str) for metric in value)
    if not known or not all(isinstance(target, int | float) and target > 0 for target in value.values()):
        raise DeclarationError("it is a dict of metrics and targets above 0, such as {'vllm:num_requests_waiting': 4}.")
    return "scale_on", [{"metric": metric, "target": float(target)} for metric, target in value.items()]


def _image(value: Any) -> tuple[str, Any]:
    # by its shape: the class need not be loaded where nobody has an image
    if type(value).__name__ != "Image" or not hasattr(value, "as_json"):
        raise DeclarationError("it is an image, such as sy.Image.python('3.11').pip_install('numpy').")
    return "image", value.as_json()


def _secrets(value: Any) -> tuple[str, Any]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise DeclarationError("it is a list, such as [sy.Secret.from_name('db')].")
    found: dict[str, Any] = {}
    for each in value:
        secret = Secret.from_name(each) if isinstance(each, str) else each
        if not isinstance(secret, Secret):
            raise DeclarationError(f"{each!r} is no secret. Write sy.Secret.from_name('db').")
        if secret.name in found:
            raise DeclarationError(f"{secret.name!r} is named twice.")
        found[secret.name] = secret.as_json()
    return "secrets", list(found.values())


def _volumes(value: Any) -> tuple[str, Any]:
    if not isinstance(value, Mapping):
        raise DeclarationError('it is a dict of paths, such as {"/data": sy.Volume.from_name("data")}.')
    for path, volume in value.items():
        if not isinstance(path, str) or not path.startswith("/"):
            raise DeclarationError(f"{path!r} is no absolute path.")
        if not isinstance(volume, Volume):
            raise DeclarationError(f"what is mounted at {path} is no sy.Volume.from_name(...).")
    return "volumes", [{"path": path.rstrip("/") or "/", **volume.as_json()} for path, volume in value.items()]


def _weights(value: Any) -> tuple[str, Any]:
    if not isinstance(value, str) or not value.startswith("/"):
        raise DeclarationError("it is the absolute path of a file or folder.")
    return "weights", value


def _schedule(value: Any) -> tuple[str, Any]:
    if not isinstance(value, Cron | Every):
        raise DeclarationError("it is sy.Cron('*/5 * * * *') or sy.Every(minutes=5).")
    return "schedule", value.as_json()


_READERS: dict[str, Reader] = {
    "name": _name,
    "cpu": _number("cpus", 0.001, 100_000),
    "memory": _memory,
    "gpu": _gpu,
    "timing": _text("timing", "best-effort", "dedicated"),
    "env": _env,
    "secrets": _secrets,
    "volumes": _volumes,
    "python": _text("python"),
    "image": _image,
    "min_replicas": _whole("replicas_min", 0, 1000),
    "max_replicas": _whole("replicas_max", 1, 1000),
    "buffer_replicas": _whole("buffer_replicas", 0, 1000),
    "idle_timeout": _seconds("idle_timeout_s"),
    "startup_deadline": _seconds("startup_deadline_s", 0.001),
    "timeout": _timeout,
    "retries": _whole("retries", 0, 100),
    "concurrency": _whole("concurrency", 1, 10_000),
    "target_wait_ms": _number("target_wait_ms", 0.001, 3_600_000),
    "target_busy": _number("target_busy", 0.01, 1.0),
    "scale_on": _scale_on,
    "weights": _weights,
    "wake_bound": _seconds("wake_bound_s", 0.001),
    "pool": _text("pool"),
    "spread": _flag("spread"),
    "public": _flag("public"),
    "schedule": _schedule,
}

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", re.ASCII)
_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgtKMGT]?)(i?)[bB]?", re.ASCII)


def read_seconds(value: Any) -> float:
    """60, 1.5, "60s", "1h30m" -> seconds, at most ten years; the same spellings as on the command line."""
    seconds = math.nan
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    elif isinstance(value, str):
        text = value.strip()
        if re.fullmatch(r"\d+(\.\d+)?", text, re.ASCII):
            seconds = float(text)
        elif text and not _DURATION.sub("", text):
            seconds = sum(float(number) * _UNIT_S[unit] for number, unit in _DURATION.findall(text))
    if not 0 <= seconds <= 10 * 365 * 86400:
        raise DeclarationError("it is a duration: seconds, or a text such as '500ms', '60s', '5m', '1h30m'.")
    return seconds


def read_bytes(value: Any) -> int:
    """ "8GB", "512MiB" -> bytes."""
    match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None or (match[3] and not match[2]):
        raise DeclarationError("it is a size, such as '512MB', '4GB' or '1.5GiB'.")
    size = round(float(match[1]) * (1024 if match[3] else 1000) ** " kmgt".index(match[2].lower() or " "))
    if not 0 < size <= 1 << 60:
        raise DeclarationError("the size is out of range.")
    return size
