"""`steelyard deploy FILE.py`: all functions of an app, or one of them. Each is deployed for itself: one that fails
leaves its own old revision, and all the others, as they are.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

from steelyard.cli.app_deploy import (
    DeployedRow,
    Takeover,
    Wanted,
    explain_failure,
    is_reached,
    make_override,
    make_volumes,
    make_wanted,
    put_function,
    upload_code,
    wait_settled,
)
from steelyard.cli.app_file import AppFile, check_python, lib_dir_for, load_app
from steelyard.cli.image_ask import ensure_app_images
from steelyard.cli.output import Progress, print_json, print_table, say
from steelyard.cli.patience import make_patience
from steelyard.cli.session import new_key, open_client, quote
from steelyard.clock import SystemClock
from steelyard.errors import NotFound, Refused, SteelyardError
from steelyard.wire.function_api import FunctionView
from steelyard.wire.http import ApiClient


class AppDeploy(NamedTuple):
    """What was asked. `only`: the one function that is meant, by its name in the file; None: all of them."""

    only: str | None
    #: options that were given, as `deploy` reads them
    given: Mapping[str, Any]
    replace: bool
    prune: bool
    as_json: bool
    takeover: Takeover = Takeover()


def deploy_app(home: Path | None, file: Path, asked: AppDeploy) -> bool:
    """False when what is meant is no function of the app but something else in its file. Raises Refused before anything is
    changed; when only some functions failed it ends the command with exit code 1."""
    options = dict(asked.given)
    python = check_python(options.get("python"))
    app = load_app(file, python, lib_dir_for(home, python))
    if asked.only is not None:
        app = choose_function(app, asked.only)
        if not app.description.functions:
            return False
    if "name" in options:
        raise Refused(
            "--name: functions of an app find each other by their names. Write name= in the decorator. Nothing was deployed.",
            code="unfit-option",
        )
    override = make_override(options) | ({"python": python} if "python" in options else {})
    with open_client(home) as client:
        # what is wrong with the file or the options is found before anything is sent
        make_wanted(app, "", override=override)
        deployed = client.fetch(list[FunctionView], "GET", "/v1/functions")
        _check_taken(app, deployed, asked.replace)
        progress = Progress()
        images = ensure_app_images(client, app, progress, make_patience(home, SystemClock()), override)
        wanted = make_wanted(app, upload_code(client, app.root, progress), override=override, images=images)
        make_volumes(client, wanted)
        rows = _deploy_all(client, wanted, progress, asked)
        vanished = find_vanished(app, deployed) if asked.only is None else []
        rows += _prune(client, vanished, asked)
    _tell(app, rows, wanted, asked)
    if any(row.state == "failed" for row in rows):
        sys.exit(1)
    return True


def choose_function(app: AppFile, name: str) -> AppFile:
    """The app with that function alone; without any, where it has none of that name. Pure."""
    functions = tuple(each for each in app.description.functions if name in (each.fn, each.attr))
    return app.with_functions(functions)


def find_taken(app: AppFile, deployed: Sequence[FunctionView]) -> list[FunctionView]:
    """What must not be overwritten unasked: functions by the app's names that it did not declare, and an app of its name from
    another file. Pure."""
    names = {each.name for each in app.description.functions}
    ours = (app.description.app, str(app.file))
    return [
        view
        for view in deployed
        if view.expires_at is None and (view.name in names or view.app == app.description.app) and (view.app, view.origin) != ours
    ]


def find_vanished(app: AppFile, deployed: Sequence[FunctionView]) -> list[str]:
    """Functions of the app that the file no longer declares. Pure."""
    names = {each.name for each in app.description.functions}
    return [
        view.name for view in deployed if view.app == app.description.app and view.expires_at is None and view.name not in names
    ]


def _check_taken(app: AppFile, deployed: Sequence[FunctionView], replace: bool) -> None:
    taken = find_taken(app, deployed)
    if not taken or replace:
        return
    told = ", ".join(f"{view.name} ({_origin(view)})" for view in taken[:5]) + (" and more" if len(taken) > 5 else "")
    question = f"{told}: deployed from somewhere else than {app.file}."
    if sys.stdin.isatty() and sys.stderr.isatty():
        if click.confirm(f"{question} Take it over?", err=True):
            return
        raise Refused("Nothing was deployed.", code="not-confirmed")
    raise Refused(
        f"{question} Nothing was deployed. Give this app another name in sy.App(...), or take it over with --replace.",
        code="name-taken",
    )


def _origin(view: FunctionView) -> str:
    return f"app {view.app} in {view.origin}" if view.app else "by itself"


def _deploy_all(client: ApiClient, wanted: Sequence[Wanted], progress: Progress, asked: AppDeploy) -> list[DeployedRow]:
    """All at once; the server rolls them out side by side."""
    rows: list[DeployedRow] = []
    views: list[FunctionView] = []
    for each in wanted:
        try:
            views.append(put_function(client, each.name, each.spec, None, each.declared.schedule, asked.takeover))
        except Refused as err:
            rows.append(DeployedRow(each.name, 0, "failed", "", err.public))
    try:
        for done, view in enumerate(views):
            count = f"{done} of {len(views)} ready; " if len(views) > 1 else ""
            settled = wait_settled(client, view, lambda text, count=count: progress.show(f"{count}{text}"))
            if settled.revision > view.revision:
                rows.append(DeployedRow(view.name, view.revision, "overtaken", settled.url))
            elif not is_reached(settled, view.revision):
                detail = "\n".join(part for part in (settled.detail.rstrip(), explain_failure(settled, view.revision)) if part)
                rows.append(DeployedRow(view.name, view.revision, "failed", settled.url, detail))
            else:
                rows.append(DeployedRow(view.name, view.revision, "ready", settled.url))
    except KeyboardInterrupt:
        progress.clear()
        say(f"The deploy of {', '.join(view.name for view in views)} goes on; `steelyard functions` shows how it ends.")
        sys.exit(130)
    progress.clear()
    return rows


def _prune(client: ApiClient, names: Sequence[str], asked: AppDeploy) -> list[DeployedRow]:
    if not names:
        return []
    prune = asked.prune
    if not prune and not asked.as_json and sys.stdin.isatty() and sys.stderr.isatty():
        prune = click.confirm(f"No longer declared: {', '.join(names)}. Delete?", err=True)
    if not prune:
        return [DeployedRow(name, 0, "vanished", "", "no longer declared; --prune deletes it") for name in names]
    for name in names:
        try:
            client.call("DELETE", f"/v1/functions/{quote(name)}", key=new_key())
        except NotFound:
            continue
        except SteelyardError as err:
            say(f"steelyard: {name} could not be deleted: {err.public}")
    return [DeployedRow(name, 0, "deleted", "", "no longer declared") for name in names]


def _tell(app: AppFile, rows: Sequence[DeployedRow], wanted: Sequence[Wanted], asked: AppDeploy) -> None:
    if asked.as_json:
        print_json(rows)
    else:
        cells = [(row.name, str(row.revision or ""), row.state, row.url) for row in rows]
        print_table(("function", "revision", "state", "url"), cells, "Nothing was deployed.", keep=("function",))
    for row in rows:
        if row.detail:
            say(f"{row.name}: {row.detail}")
    private = [each.name for each in wanted if not each.spec.public and each.spec.interface == "http"]
    if private and not asked.as_json:
        say(f"Callers of {', '.join(private)} need a key: `steelyard keys create NAME`.")
    ready = {row.name for row in rows if row.state == "ready"}
    called = next((each for each in wanted if each.spec.interface == "call" and each.name in ready), None)
    if called is not None and not asked.as_json:
        say(f"Call one: sy.Function.from_name({called.name!r}).remote(...), or `steelyard call {called.name}`.")
