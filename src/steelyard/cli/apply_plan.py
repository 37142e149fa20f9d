"""What would `apply` do, and in which order? Pure: documents and what the server said, to steps and their text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import msgspec

from steelyard.cli.documents import JOB, Document
from steelyard.errors import Refused
from steelyard.model.job import JobSpec
from steelyard.wire.api import JobForecast

CREATE, UPDATE, UNCHANGED = "create", "update", "unchanged"
_JOB_ID = re.compile(r"(?:j-)?\d{1,9}(?:_\d{1,9})?", re.ASCII)
_SHOWN_MAX = 100
#: what variables hold may be nobody's business
HIDDEN = "(hidden)"
#: from the caller's shell, not from the file
_QUIET = frozenset({"name", "argv", "env.PATH", "env.LANG", "env.LC_ALL", "env.TZ", "env.TERM"})


class Change(msgspec.Struct, frozen=True):
    """A field's value before and after; None: none."""

    field: str
    old: object
    new: object


class Step(msgspec.Struct, frozen=True):
    """What happens to one document. Also the shape of `apply --json`."""

    type: str
    name: str
    action: str
    changes: tuple[Change, ...] = ()
    #: of a job: where it would run, and when it would start; None where nobody can tell
    forecast: JobForecast | None = None
    #: names of the file and ids that it waits for
    after: tuple[str, ...] = ()
    #: of a job or schedule: as a person reads it
    command: str = ""
    #: set when it was applied: the new job's id
    id: str | None = None


def order_documents(documents: Sequence[Document]) -> list[Document]:
    """Jobs after those that they wait for, otherwise as in the file. Refuses names given twice, unknown names and cycles."""
    jobs: dict[str, Document] = {}
    seen: set[tuple[str, str]] = set()
    for document in documents:
        if (document.kind, document.name) in seen:
            raise Refused(f"{document.where}: there is another {document.kind} {document.name} above.", code="name-twice")
        seen.add((document.kind, document.name))
        if document.kind == JOB:
            jobs[document.name] = document
    for document in documents:
        for name in _waits_for(document):
            if name not in jobs and not _JOB_ID.fullmatch(name):
                text = f"{document.where}: {document.name} waits for {name!r}, which is neither a job in the file nor a job's id."
                raise Refused(text, code="no-such-job")
    ordered: dict[str, Document] = {}
    found: list[Document] = []
    for document in documents:
        if document.kind == JOB:
            _visit(document, jobs, ordered, found)
        else:
            found.append(document)
    return found


def _visit(start: Document, jobs: Mapping[str, Document], done: dict[str, Document], found: list[Document]) -> None:
    """Depth first with a stack of its own: a chain of a thousand jobs is no reason to fail."""
    path: list[str] = [start.name]
    while path:
        document = jobs[path[-1]]
        waiting = [name for name in _waits_for(document) if name in jobs and name not in done]
        if not waiting:
            path.pop()
            if document.name not in done:
                done[document.name] = document
                found.append(document)
            continue
        if waiting[0] in path:
            cycle = " -> ".join([*path[path.index(waiting[0]) :], waiting[0]])
            raise Refused(f"{document.where}: these jobs wait for each other: {cycle}. Nothing was applied.", code="cycle")
        path.append(waiting[0])


def _waits_for(document: Document) -> list[str]:
    return [] if document.spec is None else [after.job for after in document.spec.after]


def find_changes(old: msgspec.Struct | None, new: msgspec.Struct) -> tuple[Change, ...]:
    """Fields that differ, by dotted names; against None, what differs from the default."""
    before = _flatten(msgspec.to_builtins(old)) if old is not None else {}
    after = _flatten(msgspec.to_builtins(new))
    return tuple(
        Change(field, _shown(field, before.get(field)), _shown(field, after.get(field)))
        for field in dict.fromkeys([*before, *after])
        if before.get(field) != after.get(field)
    )


def find_asked(spec: JobSpec) -> tuple[Change, ...]:
    """What a new job asks for beyond the default."""
    plain = JobSpec(name="", argv=(), cwd="")
    return tuple(
        Change(change.field, None, change.new)
        for change in find_changes(plain, spec)
        if change.field not in _QUIET and change.field != "after"
    )


def _flatten(value: object, prefix: str = "") -> dict[str, object]:
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, object] = {}
    for key, each in value.items():
        flat |= _flatten(each, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _shown(field: str, value: object) -> object:
    return HIDDEN if value is not None and field.startswith(("env.", "spec.env.")) else value


def render_steps(steps: Sequence[Step]) -> str:
    return "\n".join(line for step in steps for line in _render(step))


def _render(step: Step) -> list[str]:
    lines = [f"{_SIGNS[step.action]} {step.type} {step.name}: {_WORDS[step.action]}"]
    if step.command and step.action == CREATE:
        lines.append(f"    command: {_short(step.command)}")
    for change in step.changes:
        old = "" if step.action == CREATE else f"{_value(change.old)} -> "
        lines.append(f"    {change.field}: {old}{_value(change.new)}")
    if step.after:
        lines.append(f"    after: {', '.join(step.after)}")
    if step.type == JOB:
        lines.append(f"    {_render_forecast(step)}")
    return lines


_SIGNS = {CREATE: "+", UPDATE: "~", UNCHANGED: "="}
_WORDS = {CREATE: "new", UPDATE: "changed in place", UNCHANGED: "as it is"}


def _render_forecast(step: Step) -> str:
    forecast = step.forecast
    if forecast is None:
        return "where and when: this server does not tell"
    first = "when these are done, it" if step.after else "it"
    places = [
        *([f"CPUs {','.join(map(str, forecast.cpus))}"] if forecast.cpus else ["the common cores"] if forecast.node else []),
        *([f"GPUs {', '.join(forecast.gpus)}"] if forecast.gpus else []),
    ]
    where = f" on {' and '.join(places)}" + (f" of {forecast.node}" if forecast.node else "") if places else ""
    if forecast.fits_now:
        return f"{first} would start now{where}"
    why = f" ({forecast.reason}: {forecast.detail})" if forecast.reason else ""
    when = f"would start about {forecast.starts_at[:16].replace('T', ' ')}Z{where}" if forecast.starts_at else "would wait"
    return f"{first} {when}{why}"


def _value(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return _short(value if isinstance(value, str) else msgspec.json.encode(value).decode())


def _short(text: str) -> str:
    line = text.replace("\n", "; ")
    return line if len(line) <= _SHOWN_MAX else f"{line[: _SHOWN_MAX - 3]}..."
