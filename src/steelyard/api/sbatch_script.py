"""What does a script that was written for `sbatch` ask for? Its text and the caller's options in, a `Submission` out. Pure;
raises Refused.

Options of the command line win over `#SBATCH` lines, of several the last. What is understood but not acted on is told in
`Submission.ignored`, so that nothing is dropped in silence.
"""

from __future__ import annotations

import os.path
import re
from collections.abc import Callable, Mapping
from datetime import tzinfo
from typing import NamedTuple, TypeVar

import msgspec

from steelyard.api.sbatch_direct import divide
from steelyard.api.sbatch_explain import explain_option
from steelyard.api.sbatch_options import (
    export_variables,
    lower_priority,
    parse_dependencies,
    parse_priority,
    parse_signal,
)
from steelyard.api.sbatch_patterns import make_pattern
from steelyard.api.sbatch_resources import Size, measure
from steelyard.api.sbatch_text import HINT, Setting, check_text, find_unread, read_called, read_lines
from steelyard.api.slurm_time import find_zone, parse_begin, parse_slurm_time
from steelyard.errors import Refused
from steelyard.lifecycle.array import parse_array
from steelyard.model.batch import PRIORITY_DEFAULT, RetryOn, RetryRule, Warn
from steelyard.model.image import is_reference
from steelyard.model.job import JobSpec
from steelyard.wire.api import ScriptSubmit

T = TypeVar("T")

#: further attempts of a job that may be queued again, for each reason that is not its own fault
_REQUEUES = 10
_NAME_MAX = 100
#: a variable's name to a shell
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_MEMORY = ("mem", "mem-per-cpu", "mem-per-gpu")
_OPPOSITE = {"requeue": "no-requeue", "no-requeue": "requeue"}


class Understood(NamedTuple):
    """A row of `--test-only`."""

    option: str
    value: str
    becomes: str
    #: `line 4`, or `the command line`
    where: str


class Submission(msgspec.Struct, frozen=True):
    #: of one job, or of each element of the array; %-patterns in `stdout` and `stderr` are not filled yet (`fill_outputs`)
    spec: JobSpec
    #: `0-99%8`, in its shortest spelling
    array: str | None
    #: sentences: what was understood but is not acted on
    ignored: tuple[str, ...]
    nodes: int
    understood: tuple[Understood, ...] = ()


class _Call(NamedTuple):
    text: str
    arguments: tuple[str, ...]
    cwd: str
    env: Mapping[str, str]
    name: str
    now: int
    zone: tzinfo | None
    #: it runs on the files of an image: what is around the caller is not there
    contained: bool
    #: it goes into the queue of a cluster
    direct: bool = False


def parse_script(
    text: str,
    arguments: tuple[str, ...],
    options: tuple[str, ...],
    cwd: str,
    env: Mapping[str, str],
    *,
    name: str = "sbatch",
    now: int = 0,
    zone: tzinfo | None = None,
    contained: bool = False,
    direct: bool = False,
) -> Submission:
    """`name` is the script's file name, `now` in microseconds since the epoch, `zone` the caller's (None: this machine's). A
    `contained` script begins in the image's folder unless --chdir names one, and gets those variables that --export names.
    What isn't ours of a `direct` one is in `JobSpec.sbatch`."""
    called = read_called(options)
    wrapped = next((each.given.value for each in reversed(called) if each.given.option.name == "wrap"), None)
    if wrapped is not None:
        if text or arguments:
            raise Refused("--wrap takes the place of a script: give one or the other", code="bad-script")
        text, name = f"#!/bin/sh\n{wrapped}\n", "wrap"
    lines = check_text(text)
    chosen = _choose(read_lines(lines), called)
    size = chosen
    theirs: tuple[str, ...] = ()
    if direct:
        chosen, theirs = divide(chosen)
    _check_known(chosen)
    call = _Call(text, arguments, cwd, env, name[:_NAME_MAX], now, zone, contained, direct)
    spec, notes = _make_spec(chosen, call, _measure(size, direct))
    spec = msgspec.structs.replace(spec, direct=direct, sbatch=theirs)
    array = None if (asked := _value(chosen, "array")) is None else _placed(chosen, lambda: parse_array(asked).text, "array")
    understood = tuple(
        Understood(
            f"--{each.given.option.name}", each.given.value or "", explain_option(each.given.option.name, spec, array), each.where
        )
        for each in chosen.values()
        if each.given.option.does == "acts"
    ) + tuple(
        Understood(f"--{each.given.option.name}", each.given.value or "", "Slurm's, as it is", each.where)
        for name, each in size.items()
        if name not in chosen
    )
    ignored = (*_find_ignored(chosen), *notes, *find_unread(lines))
    return Submission(spec, array, ignored, int(spec.slurm["SLURM_JOB_NUM_NODES"]), understood)


def read_script(data: ScriptSubmit, now: int) -> Submission:
    """Raises Refused for what can't be read, and for more machines than there are."""
    submission = parse_script(
        data.script,
        data.arguments,
        data.options,
        data.cwd,
        data.env,
        name=data.name,
        now=now,
        zone=find_zone(data.env.get("TZ")),
        contained=is_reference(data.image),
        direct=data.direct,
    )
    if submission.nodes > 1 and not data.direct:
        here = f"of pool {data.pool} it gets one machine" if data.pool else "this Steelyard is one machine"
        raise Refused(
            f"The script asks for {submission.nodes} nodes, and {here}. Ask for one node with all tasks "
            f"on it: --nodes=1 --ntasks={submission.spec.slurm['SLURM_NTASKS']}.",
            code="one-machine",
        )
    spec = msgspec.structs.replace(submission.spec, volumes=data.volumes, secrets=data.secrets, pool=data.pool)
    return msgspec.structs.replace(submission, spec=spec)


# which of the options count


def _choose(script: list[Setting], called: list[Setting]) -> dict[str, Setting]:
    """By name, the last one given. Of options that exclude each other, the command line's put the script's away."""
    chosen: dict[str, Setting] = {}
    for each in (*script, *called):
        name = each.given.option.name
        chosen.pop(_OPPOSITE.get(name, ""), None)
        if name in _MEMORY and each.called:
            for other in _MEMORY:
                if other in chosen and not chosen[other].called:
                    del chosen[other]
        chosen[name] = each
    memory = [name for name in _MEMORY if name in chosen]
    if len(memory) > 1:
        names = " and ".join(f"--{name}" for name in memory)
        raise Refused(f"{chosen[memory[1]].where}: {names} exclude each other, as in Slurm: keep one", code="bad-memory")
    return chosen


def _find_ignored(chosen: Mapping[str, Setting]) -> list[str]:
    found: list[str] = []
    for each in chosen.values():
        option = each.given.option
        if option.does == "ignored":
            found.append(f"{each.where}: {each.given.text} is not acted on: {option.becomes}")
        elif option.does == "client" and not each.called:
            found.append(f"{each.where}: {each.given.text} is not acted on: it is for the command line")
    return found


def _check_known(chosen: Mapping[str, Setting]) -> None:
    for each in chosen.values():
        option, value = each.given.option, each.given.value
        if option.does == "refused":
            raise Refused(f"{each.where}: {each.given.text[:80]} can't be done: {option.becomes}{HINT}", code="refused-option")
        if option.name == "wrap" and not each.called:
            raise Refused(f"{each.where}: --wrap is for the command line{HINT}", code="refused-option")
        if option.name == "input" and value != "/dev/null":
            how = "read the file in the script, with `exec <FILE`"
            raise Refused(f"{each.where}: --input can't be done: {how}{HINT}", code="refused-option")
        if option.name != "wrap" and value is not None and ("\0" in value or "\n" in value):
            raise Refused(f"{each.where}: the value of --{option.name} holds a line break or NUL{HINT}", code="bad-value")


def _value(chosen: Mapping[str, Setting], name: str) -> str | None:
    return chosen[name].given.value if name in chosen else None


def _placed(chosen: Mapping[str, Setting], parse: Callable[[], T], name: str = "") -> T:
    """What `parse` gives; its refusal with the place of the option `name`, or of the one that it speaks of, before it."""
    try:
        return parse()
    except Refused as err:
        named = [option for option in chosen if f"--{option}" in err.public]
        option = name or max(named, key=len, default="")
        where = f"{chosen[option].where}: " if option in chosen else ""
        raise Refused(f"{where}{err.public}", code=err.code) from None


# what they ask for


def _measure(chosen: Mapping[str, Setting], direct: bool) -> Size:
    """Of a job for Slurm it is what is shown of it, as far as we can tell: Slurm measures for itself."""
    values = {name: each.given.value for name, each in chosen.items() if not (direct and name == "exclusive")}
    try:
        return _placed(chosen, lambda: measure(values))
    except Refused:
        if not direct:
            raise
        return measure({})


def _make_spec(chosen: Mapping[str, Setting], call: _Call, size: Size) -> tuple[JobSpec, list[str]]:
    """The job, and sentences about options that are acted on in part."""
    notes: list[str] = []
    folder = _find_folder(_value(chosen, "chdir"), call.cwd)
    exported = _placed(chosen, lambda: export_variables(_value(chosen, "export"), call.env, inherit=not call.contained), "export")
    if exported.left_out:
        names = ", ".join(exported.left_out[:10]) + (" and more" if len(exported.left_out) > 10 else "")
        notes.append(f"the environment: {names} can't be passed on (shell functions, values with NUL)")
    if unread := sorted(name for name in call.env if name.startswith("SBATCH_")):
        notes.append(f"the environment: {', '.join(unread[:10])} is not read: give options on the command line")
    variables = exported.env
    if call.direct:
        variables = {name: value for name, value in exported.env.items() if _PLAIN.fullmatch(name)}
        if odd := sorted(exported.env.keys() - variables):
            notes.append(f"the environment: {', '.join(odd[:10])} can't be passed on by a batch script")
    warn, signal_notes = _find_warning(chosen)
    priority, held, priority_notes = _find_priority(chosen)
    name, name_notes = _find_name(chosen, call.name)
    notes += name_notes + signal_notes + priority_notes + _explain_exclusive(chosen)
    stdout, stderr, truncate = _find_outputs(chosen, folder)
    begin = _value(chosen, "begin")
    dependency = _value(chosen, "dependency")
    spec = JobSpec(
        name=name,
        argv=(call.name, *call.arguments),
        cwd="" if call.contained and "chdir" not in chosen else folder,
        env=variables,
        resources=size.resources,
        script=call.text,
        priority=priority,
        account=_value(chosen, "account") or "",
        after=() if dependency is None else _placed(chosen, lambda: parse_dependencies(dependency), "dependency"),
        held=held,
        begin_at=None if begin is None else _placed(chosen, lambda: parse_begin(begin, call.now, call.zone), "begin"),
        max_duration_s=_find_limit(chosen),
        warn=warn,
        retry=() if "no-requeue" in chosen else _RETRY,
        stdout=stdout,
        stderr=stderr,
        truncate_output=truncate,
        slurm=_make_facts(chosen, size, call),
    )
    return spec, notes


#: what Slurm queues again unless told otherwise (JobRequeue=1)
_RETRY = (RetryRule(RetryOn.NODE_LOST, _REQUEUES), RetryRule(RetryOn.PREEMPTED, _REQUEUES, backoff_s=0.0))


def _make_facts(chosen: Mapping[str, Setting], size: Size, call: _Call) -> dict[str, str]:
    facts = size.facts | {"SLURM_SUBMIT_DIR": call.cwd}
    for option, variable in (("partition", "SLURM_JOB_PARTITION"), ("qos", "SLURM_JOB_QOS"), ("account", "SLURM_JOB_ACCOUNT")):
        if (value := _value(chosen, option)) is not None:
            # of several partitions Slurm tells the one that was taken
            facts[variable] = value.partition(",")[0]
    return facts


def _find_folder(asked: str | None, cwd: str) -> str:
    folder = cwd if asked is None else os.path.normpath(os.path.join(cwd, asked))
    if not folder.startswith("/") or "\0" in folder:
        raise Refused(f"The working folder {folder[:80]!r} must be an absolute path.", code="bad-path")
    return folder


def _find_name(chosen: Mapping[str, Setting], script: str) -> tuple[str, list[str]]:
    """Slurm takes any name; here it has no slashes and a bound."""
    asked = _value(chosen, "job-name") or script
    name = "".join(char if char.isprintable() and char != "/" else "_" for char in asked)[:_NAME_MAX]
    if name == asked or "job-name" not in chosen:
        return name, []
    return name, [f"{chosen['job-name'].where}: the job's name is written {name!r}: up to {_NAME_MAX} characters, no slashes"]


def _find_limit(chosen: Mapping[str, Setting]) -> float | None:
    """Whole minutes, rounded up as Slurm does; 0 is no limit."""
    asked = _value(chosen, "time")
    if asked is None:
        return None
    seconds = _placed(chosen, lambda: parse_slurm_time(asked), "time")
    return float(-(-seconds // 60) * 60) if seconds else None


def _find_warning(chosen: Mapping[str, Setting]) -> tuple[Warn | None, list[str]]:
    asked = _value(chosen, "signal")
    if asked is None:
        return None, []
    warn = _placed(chosen, lambda: parse_signal(asked), "signal")
    if _find_limit(chosen) is None:
        return None, [f"{chosen['signal'].where}: --signal={asked} has no effect without a time limit (--time)"]
    return warn, []


def _find_priority(chosen: Mapping[str, Setting]) -> tuple[int, bool, list[str]]:
    """Priority, held, and what is not acted on."""
    priority, held, notes = PRIORITY_DEFAULT, "hold" in chosen, []
    if "nice" in chosen:
        nice = chosen["nice"].given.value
        priority = _placed(chosen, lambda: lower_priority(nice), "nice")
        if nice is not None and nice.strip().startswith("-"):
            notes.append(f"{chosen['nice'].where}: --nice={nice} is not acted on: a job's own user can't raise its priority")
    if (asked := _value(chosen, "priority")) is not None:
        number = _placed(chosen, lambda: parse_priority(asked), "priority")
        if number is None:
            notes.append(f"{chosen['priority'].where}: --priority={asked} is not acted on: priorities go from 0 to 100 here")
        elif number == 0:
            held = True
        else:
            priority = number
    return priority, held, notes


def _explain_exclusive(chosen: Mapping[str, Setting]) -> list[str]:
    if "exclusive" not in chosen:
        return []
    if (kind := chosen["exclusive"].given.value) is not None:
        return [f"{chosen['exclusive'].where}: --exclusive={kind} is not acted on: jobs of other users share the machine"]
    return [f"{chosen['exclusive'].where}: --exclusive gives whole cores, as many as the job asks for, not the whole machine"]


def _find_outputs(chosen: Mapping[str, Setting], folder: str) -> tuple[str, str, bool]:
    """Patterns of both streams' files, and whether they are emptied first."""
    default = "slurm-%A_%a.out" if "array" in chosen else "slurm-%j.out"
    stdout = _placed(chosen, lambda: make_pattern(_value(chosen, "output") or default, folder, "output"), "output")
    error = _value(chosen, "error")
    stderr = stdout if error is None else _placed(chosen, lambda: make_pattern(error, folder, "error"), "error")
    mode = (_value(chosen, "open-mode") or "truncate").lower()
    if not mode or not any(word.startswith(mode) for word in ("append", "truncate")):
        raise Refused(f"{chosen['open-mode'].where}: --open-mode is append or truncate, not {mode[:40]!r}", code="bad-value")
    return stdout, stderr, mode.startswith("t")
