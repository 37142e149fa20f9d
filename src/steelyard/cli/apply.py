"""`steelyard apply`: make what a file says true. Shows the plan first, asks, then carries it out.

Jobs are new each time; schedules and functions are found by their names and changed in place, or left as they are.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import click
import msgspec

from steelyard.cli.app_deploy import Takeover
from steelyard.cli.app_file import check_python
from steelyard.cli.apply_plan import (
    CREATE,
    UNCHANGED,
    UPDATE,
    Change,
    Step,
    find_asked,
    find_changes,
    order_documents,
    render_steps,
)
from steelyard.cli.deploy import hand_over, make_argv, read_target
from steelyard.cli.documents import FUNCTION, JOB, Document, FunctionAsk, read_documents
from steelyard.cli.image_ask import find_image_id
from steelyard.cli.output import print_json, say
from steelyard.cli.session import home_option, json_option, new_key, open_client
from steelyard.clock import SystemClock
from steelyard.errors import NotFound, Refused, SteelyardError
from steelyard.lifecycle.schedule import check_cron
from steelyard.model.function import FunctionSpec
from steelyard.model.ids import JobId
from steelyard.model.image import is_reference
from steelyard.wire.api import JobForecast, JobSubmit, JobView, SchedulePut, ScheduleView
from steelyard.wire.function_api import FunctionView
from steelyard.wire.http import ApiClient

APPLY_HELP = """Make what a YAML file says true: jobs, schedules and functions. Shows the plan and asks first.

The plan says what is new or changes, where a job would run, and when it would start. Jobs are new each time; schedules and
functions of the same name are changed in place. A file may hold several documents, divided by lines of three dashes; `after`
names other jobs of the file, or ids. Relative paths start at the file.

\b
A document:
  type: job                    # or schedule (with schedule: 0 3 * * *), or function
  name: train
  resources: {cpu: 4, memory: 8GB, gpu: "H100:8"}
  commands: [pip list, python train.py]
  after: ok:prepare

\b
Examples:
  steelyard apply -f job.yaml
  steelyard apply -y -f prepare.yaml -f train.yaml
  steelyard apply -f job.yaml --json | jq '.[].forecast'
"""


class Planned(NamedTuple):
    document: Document
    step: Step
    #: of a function, without its bundle: code is sent when it is applied
    function: FunctionSpec | None = None
    code: Path | None = None


@click.command(help=APPLY_HELP, short_help="Make what a YAML file says true, after showing the plan.")
@click.option("--file", "-f", "files", multiple=True, required=True, help="A file of documents, or - for stdin. May be repeated.")
@click.option("--yes", "-y", is_flag=True, help="Don't ask.")
@home_option
@json_option
def apply(files: tuple[str, ...], yes: bool, home: Path | None, as_json: bool) -> None:
    now = datetime.fromtimestamp(SystemClock().now_us() / 1e6, UTC)
    documents = order_documents([document for file in files for document in _read(file, now)])
    apply_documents(documents, yes, home, as_json, stdin_taken="-" in files)


def apply_documents(
    documents: Sequence[Document], yes: bool, home: Path | None, as_json: bool, *, stdin_taken: bool = False
) -> None:
    """Show the plan, ask, carry it out. Ends with 1 where the answer is no."""
    with open_client(home) as client:
        planned = [_plan(client, document) for document in documents]
        steps = [each.step for each in planned]
        if as_json and not yes:
            print_json(steps)
            return
        if not as_json:
            click.echo(render_steps(steps))
        if not yes and not _agreed(len(steps), stdin_taken):
            say("Nothing was applied.")
            sys.exit(1)
        applied = _carry_out(client, planned, as_json)
    if as_json:
        print_json(applied)


def _read(file: str, now: datetime) -> list[Document]:
    if file == "-":
        return read_documents(sys.stdin.buffer.read(), "stdin", os.getcwd(), now)
    path = Path(file)
    try:
        raw = path.read_bytes()
    except FileNotFoundError as err:
        raise NotFound(f"There is no file {file}. Nothing was applied.", code="no-such-file") from err
    except OSError as err:
        raise Refused(f"{file} can't be read ({err.strerror}). Nothing was applied.", code="file-unreadable") from err
    return read_documents(raw, file, str(path.absolute().parent), now)


def _agreed(count: int, stdin_taken: bool) -> bool:
    if stdin_taken or not sys.stdin.isatty():
        raise Refused(
            "Nobody is there to ask. Look at the plan above, then apply it with -y. Nothing was applied.", code="not-asked"
        )
    return click.confirm(f"Apply {'this' if count == 1 else f'these {count}'}?", default=None, err=True)


# the plan


def _plan(client: ApiClient, document: Document) -> Planned:
    """Asks the server; changes nothing. What the server refuses is said with the document's place."""
    try:
        if document.kind == JOB:
            return _plan_job(client, document)
        if document.kind == FUNCTION:
            return _plan_function(client, document)
        return _plan_schedule(client, document)
    except Refused as err:
        raise type(err)(f"{document.where} ({document.name}): {err.public}", code=err.code) from err


def _plan_job(client: ApiClient, document: Document) -> Planned:
    assert document.spec is not None
    # those it waits for need not exist yet
    alone = msgspec.structs.replace(document.spec, after=())
    try:
        body = JobSubmit(alone, document.array, document.project)
        forecast = client.fetch(JobForecast, "POST", "/v1/plan", body=body)
    except NotFound:
        forecast = None
    after = tuple(f"{each.job} ({each.kind.value})" for each in document.spec.after)
    changes = find_asked(document.spec)
    step = Step(JOB, document.name, CREATE, changes, forecast, after, shlex.join(document.spec.argv))
    return Planned(document, step)


def _plan_schedule(client: ApiClient, document: Document) -> Planned:
    assert document.spec is not None
    spec = msgspec.structs.replace(document.spec, image=_find_id(client, document.spec.image))
    put = msgspec.structs.replace(_schedule_put(document), spec=spec)
    if (wrong := check_cron(put.cron, UTC, SystemClock().now_us())) is not None:
        raise Refused(wrong, code="bad-cron")
    command = shlex.join(document.spec.argv)
    try:
        view = client.fetch(ScheduleView, "GET", f"/v1/schedules/{document.name}")
    except NotFound:
        changes = (Change("cron", None, put.cron), Change("timezone", None, put.timezone), *find_asked(spec))
        return Planned(document, Step(document.kind, document.name, CREATE, changes, command=command))
    changes = find_changes(SchedulePut(view.cron, view.spec, view.timezone, view.function, view.every_s), put)
    return Planned(document, Step(document.kind, document.name, UPDATE if changes else UNCHANGED, changes, command=command))


def _plan_function(client: ApiClient, document: Document) -> Planned:
    assert document.function is not None
    spec, code = make_function_spec(document.function)
    # stored by its id, which does not change when the name moves
    spec = msgspec.structs.replace(spec, image=_find_id(client, spec.image))
    old: FunctionSpec | None = None
    try:
        view = client.fetch(FunctionView, "GET", f"/v1/functions/{document.name}")
        # a view without a spec is an older server's
        old = view.spec or FunctionSpec()
    except NotFound:
        pass
    bundle = None if code is None else _hash_code(code)
    changes = find_changes(old or FunctionSpec(), msgspec.structs.replace(spec, bundle=bundle))
    action = CREATE if old is None else UPDATE if changes else UNCHANGED
    if action != UNCHANGED:
        changes += _find_takeover(document.function)
    return Planned(document, Step(FUNCTION, document.name, action, changes), spec, code)


def _find_takeover(ask: FunctionAsk) -> tuple[Change, ...]:
    """How the new revision comes to its traffic, where that is not the usual way."""
    traffic = (Change("traffic", None, f"{ask.traffic} %"),) if ask.traffic != 100 else ()
    return (*traffic, *((Change("tag", None, ask.tag),) if ask.tag else ()))


def _find_id(client: ApiClient, image: str) -> str:
    return image if is_reference(image) else find_image_id(client, image)


def _schedule_put(document: Document) -> SchedulePut:
    assert document.spec is not None and document.cron is not None
    return SchedulePut(document.cron, document.spec, document.timezone)


def make_function_spec(ask: FunctionAsk) -> tuple[FunctionSpec, Path | None]:
    """As `deploy` makes it of the same words; the second is the file whose folder is captured. Raises Refused."""
    code = read_target(ask.target, ask.port)
    if ask.image and ask.python:
        raise Refused("An image brings its own Python: leave out `python` or `image`.", code="two-pythons")
    python = "" if ask.image else check_python(ask.python)
    spec = FunctionSpec(
        file=code.file.name if code.file and code.attr else None,
        attr=code.attr,
        argv=make_argv(code, python, ask.image),
        cwd=None if code.file or is_reference(ask.image) else ask.workdir,
        python=python,
        image=ask.image,
        own_network=ask.own_network,
        port=ask.port,
        readiness=ask.readiness,
        scale_on=ask.scale_on,
        weights=ask.weights,
        env=ask.env,
        resources=ask.resources,
        replicas_min=ask.replicas[0],
        replicas_max=ask.replicas[1],
        public=ask.public,
        as_root=ask.as_root,
        secrets=ask.secrets,
        volumes=ask.volumes,
        pool=ask.pool,
        spread=ask.spread,
    )
    given = {
        "concurrency": ask.concurrency,
        "target_wait_ms": None if ask.target_wait_s is None else ask.target_wait_s * 1000,
        "target_busy": ask.target_busy,
        "buffer_replicas": ask.buffer_replicas,
        "idle_timeout_s": ask.idle_timeout_s,
        "startup_deadline_s": ask.startup_deadline_s,
        "wake_bound_s": ask.wake_bound_s,
    }
    return msgspec.structs.replace(spec, **{key: value for key, value in given.items() if value is not None}), code.file


def _hash_code(file: Path) -> str:
    from steelyard.cli.bundle import capture_folder

    bundle = capture_folder(file.parent)
    bundle.file.close()
    return bundle.sha256


# carrying it out


def _carry_out(client: ApiClient, planned: list[Planned], as_json: bool) -> list[Step]:
    """In order. Raises what the server refused, after saying what was applied before it."""
    ids: dict[str, str] = {}
    done: list[Step] = []
    for each in planned:
        document, step = each.document, each.step
        try:
            if document.kind == JOB:
                ids[document.name] = _submit(client, document, ids)
                step = msgspec.structs.replace(step, id=ids[document.name])
            elif step.action != UNCHANGED and each.function is not None:
                assert document.function is not None
                how = Takeover(document.function.traffic, document.function.tag, document.function.errors_max)
                tell = say if as_json else click.echo
                hand_over(client, document.name, each.function, each.code, tell=tell, takeover=how)
            elif step.action != UNCHANGED:
                path = f"/v1/schedules/{document.name}"
                client.fetch(ScheduleView, "PUT", path, body=_schedule_put(document), key=new_key())
        except SteelyardError as err:
            applied = ", ".join(f"{each.type} {each.name}{f' ({each.id})' if each.id else ''}" for each in done) or "nothing"
            raise type(err)(
                f"{document.where} ({document.name}): {err.public} Applied before it: {applied}.", code=err.code
            ) from err
        done.append(step)
        if not as_json and document.kind != FUNCTION:
            click.echo(f"{document.kind} {document.name} {step.id or step.action}")
    return done


def _submit(client: ApiClient, document: Document, ids: dict[str, str]) -> str:
    assert document.spec is not None
    after = tuple(msgspec.structs.replace(each, job=JobId(ids.get(each.job, each.job))) for each in document.spec.after)
    spec = msgspec.structs.replace(document.spec, after=after)
    body = JobSubmit(spec, document.array, document.project)
    view = client.fetch(JobView, "POST", "/v1/jobs", body=body, key=new_key())
    # of an array, the view's id is the array's
    return view.id
