"""`steelyard serve`: an app under names of its own (`-dev`), made anew with every save, deleted at the end.

A save is deployed as it is, at once: while the new revision is made ready the old one answers, and it goes on when the new one
does not start. What the file declares is read beside it, in a process of its own, so that no module of an earlier save lives on
here; functions that were added, changed or taken out follow a moment later.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click

from steelyard.cli.app_deploy import (
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
from steelyard.cli.app_file import AppFile, Declared, Description, check_python, declares_app, load_app_apart, parse_file
from steelyard.cli.attend import START
from steelyard.cli.deploy import read_target
from steelyard.cli.deploy_app import choose_function
from steelyard.cli.ephemeral import LEASE_S, Ended, Lease, ended_by_signals
from steelyard.cli.function_logs import FunctionLogs, find_end
from steelyard.cli.image_ask import ensure_app_images
from steelyard.cli.output import Progress, print_table, say
from steelyard.cli.patience import Patience, make_patience
from steelyard.cli.saves import Save, Saves
from steelyard.cli.session import home_option, open_client
from steelyard.clock import Clock, SystemClock
from steelyard.errors import Refused, SteelyardError
from steelyard.wire.function_api import FunctionView
from steelyard.wire.http import ApiClient

SUFFIX = "-dev"

SERVE_HELP = """Serve an app while you work on it: every save is live a moment later.

FILE.py is an app of functions, FILE.py:NAME one function of it or an ASGI app. Its functions get names that end in -dev, so that
what is deployed is left alone. A save makes new revisions: the old ones answer until those are ready, and go on where the code
does not start; what is wrong is shown here. What the functions write is shown too. Ctrl-C deletes them.

\b
Examples:
  steelyard serve shop.py
  steelyard serve --env STAGE=dev --public shop.py:web
  steelyard serve app.py:app
"""


@click.command(help=SERVE_HELP, short_help="Serve an app while you work on it.")
@click.option(
    "--env", "env", multiple=True, metavar="K=V", help="Set a variable (K alone takes the caller's value). May be repeated."
)
@click.option("--python", type=click.Path(), help="Interpreter of the code's environment [default: the one running this].")
@click.option("--public", is_flag=True, help="Anybody who reaches the gateway may call it, without a key.")
@home_option
@click.argument("target", metavar="FILE.py[:NAME]")
def serve(env: tuple[str, ...], python: str | None, public: bool, home: Path | None, target: str) -> None:
    code = read_target((target,), None, apps=True)
    if code.file is None:
        raise Refused(f"{target!r} is no Python file. Write FILE.py or FILE.py:NAME.", code="bad-target")
    override = make_override({"env": env} if env else {}) | ({"public": True} if public else {})
    source = _Source(code.file, code.attr, check_python(python), home)
    app, clock = source.load(), SystemClock()
    try:
        with ended_by_signals(), open_client(home) as client, FunctionLogs(client, 8) as logs, Lease(client) as lease:
            saves = Saves(app.root, clock)
            session = _Session(client, lease, logs, source, override, saves, clock, make_patience(home, clock))
            session.begin(app)
            while True:
                session.reload(saves.take())
    except KeyboardInterrupt:
        say("\nsteelyard: its functions were deleted.")
        sys.exit(130)
    except Ended as err:
        sys.exit(err.code)


class _Source:
    """The file that is served, and what of it."""

    def __init__(self, file: Path, attr: str | None, python: str, home: Path | None) -> None:
        self.file = file
        self._attr = attr
        self._python = python
        self._home = home

    def load(self) -> AppFile:
        """What it declares now. Raises what is wrong with it."""
        if self._attr is not None and not declares_app(self.file):
            name = self.file.stem.lower().replace("_", "-")
            only = Declared(name, name, str(self.file), self._attr, "http", None, {}, None, ())
            return AppFile(self.file, self.file.parent, self._python, Description("", (only,)))
        app = load_app_apart(self.file, self._python, self._home)
        if self._attr is None:
            return app
        chosen = choose_function(app, self._attr)
        if not chosen.description.functions:
            there = ", ".join(each.fn for each in app.description.functions)
            raise Refused(f"{self.file} has no function {self._attr!r}. There is: {there}.", code="bad-target")
        return chosen


class _Session:
    """What is served now. One save after the other; a newer one overtakes those that are not ready yet."""

    def __init__(
        self,
        client: ApiClient,
        lease: Lease,
        logs: FunctionLogs,
        source: _Source,
        override: Mapping[str, Any],
        saves: Saves,
        clock: Clock,
        patience: Patience,
    ) -> None:
        self._patience = patience
        self._client, self._lease, self._logs = client, lease, logs
        self._source, self._override = source, override
        self._saves, self._clock = saves, clock
        self._loader = ThreadPoolExecutor(1, "load")
        self._app: AppFile | None = None
        self._bundle = ""
        #: ids by the function's name in the file
        self._images: dict[str, str] = {}
        #: as deployed last
        self._wanted: dict[str, Wanted] = {}

    def begin(self, app: AppFile) -> None:
        self._check_others(app)
        progress = Progress()
        self._images = ensure_app_images(self._client, app, progress, self._patience, self._override)
        self._bundle = upload_code(self._client, app.root, progress)
        views = self._put(make_wanted(app, self._bundle, SUFFIX, self._override, self._images))
        rows: list[tuple[str, ...]] = []
        for view in views:
            settled = wait_settled(self._client, view, progress.show)
            progress.clear()
            state = "ready" if is_reached(settled, view.revision) else f"FAILED ({settled.reason})"
            rows.append((view.name, state, settled.url))
            if not is_reached(settled, view.revision):
                say(settled.detail.rstrip())
        self._app = app
        print_table(("function", "state", "url"), rows, "It declares no functions.", keep=("function", "url"))
        say(f"Serving {app.file}; every save is deployed. Ctrl-C ends it.")

    def reload(self, save: Save) -> None:
        """Never raises for what a save does wrong: it says so, and what was served is served on."""
        assert self._app is not None
        try:
            for file in sorted(save.files):
                if file.suffix == ".py" and file.is_file():
                    parse_file(file)
            bundle = upload_code(self._client, self._app.root, Progress(quiet=True))
        except SteelyardError as err:
            say(f"steelyard: {err.public.removesuffix(' Nothing was deployed.')} What was served is served on.")
            return
        if bundle == self._bundle:
            return
        self._bundle = bundle
        declared = self._loader.submit(self._source.load)
        try:
            views = self._put(make_wanted(self._app, bundle, SUFFIX, self._override, self._images))
            failed = self._tell(views, save)
            app = declared.result()
            self._images = ensure_app_images(self._client, app, Progress(), self._patience, self._override)
        except SteelyardError as err:
            # the traceback of a file that can't be imported is here too
            say(f"steelyard: {err.public}")
            return
        self._follow(app, save, failed)

    def _follow(self, app: AppFile, save: Save, failed: Mapping[str, str]) -> None:
        """What the file declares now, where that differs from what was deployed at once."""
        wanted = make_wanted(app, self._bundle, SUFFIX, self._override, self._images)
        names = {each.name for each in wanted}
        self._app = app
        vanished = [name for name in self._wanted if name not in names]
        if vanished:
            self._lease.give_back(vanished)
            for name in vanished:
                del self._wanted[name]
            say(f"No longer declared, and deleted: {', '.join(vanished)}")
        changed = [each for each in wanted if each.name not in self._wanted or self._wanted[each.name].spec != each.spec]
        for name, text in failed.items():
            # one that is gone, or deployed anew, fails no more
            if name in names and name not in {each.name for each in changed}:
                say(text)
        for text in self._tell(self._put(changed), save).values():
            say(text)

    def _put(self, wanted: Sequence[Wanted]) -> list[FunctionView]:
        views: list[FunctionView] = []
        make_volumes(self._client, wanted)
        for each in wanted:
            new = each.name not in self._wanted
            # an earlier session's log is not shown again
            begin = find_end(self._client, each.name) if new else START
            self._lease.add(each.name)
            views.append(put_function(self._client, each.name, each.spec, LEASE_S))
            self._wanted[each.name] = each
            if new:
                self._logs.add(each.name, each.declared.fn, begin)
        return views

    def _tell(self, views: Sequence[FunctionView], save: Save) -> dict[str, str]:
        """Waits until they are ready; what failed, by name. Whoever saves again meanwhile is not kept waiting."""
        failed: dict[str, str] = {}
        ready: list[str] = []
        for view in views:
            settled = wait_settled(self._client, view, lambda _: None, lambda: self._saves.waiting)
            if is_reached(settled, view.revision):
                ready.append(view.name)
            elif settled.state == "FAILED" and settled.revision == view.revision:
                failed[view.name] = f"{settled.detail.rstrip()}\n{explain_failure(settled, view.revision)}"
        if ready:
            took_ms = (self._clock.mono_ns() - save.at_ns) / 1e6
            say(f"Reloaded in {took_ms:.0f} ms: {', '.join(ready)}")
        return failed

    def _check_others(self, app: AppFile) -> None:
        """The same app served from elsewhere would be overwritten with every save of either."""
        names = {declared.name + SUFFIX for declared in app.description.functions}
        found = self._client.fetch(list[FunctionView], "GET", "/v1/functions")
        for view in found:
            if view.name in names and view.expires_at is not None and view.origin != str(app.file):
                raise Refused(
                    f"{view.name} is being served from {view.origin}. End that `steelyard serve`, or give this app another name.",
                    code="name-taken",
                )
