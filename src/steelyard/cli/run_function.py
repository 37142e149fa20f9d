"""`steelyard run FILE.py[:NAME] [ARGS]`: an app for this once. Its arguments are read before anything starts; then the app is
deployed under names of its own, called, and deleted.

The exit code: 0, 1 when the user's code raised, 125 when Steelyard refused, 130 after Ctrl-C.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from steelyard.cli.app_deploy import is_reached, make_override, make_volumes, make_wanted, put_function, upload_code, wait_settled
from steelyard.cli.app_file import AppFile, Call, UserCodeFailed, check_python, lib_dir_for
from steelyard.cli.ephemeral import LEASE_S, Ended, Lease, ended_by_signals, make_suffix
from steelyard.cli.function_logs import FunctionLogs
from steelyard.cli.output import Progress, say
from steelyard.cli.session import find_settings, open_client, read_token
from steelyard.errors import Refused
from steelyard.model.reason import Reason
from steelyard.wire.http import ApiClient


def run_function(
    home: Path | None, target: str, words: tuple[str, ...], python: str | None, as_json: bool, asked: Mapping[str, Any]
) -> int:
    """`asked`: the options that were given, as `job_options` reads them. Raises Refused before anything has started."""
    file_name, _, name = target.rpartition(":") if ".py:" in target else (target, "", "")
    file = Path(os.path.abspath(file_name))
    if not file.is_file():
        raise Refused(f"There is no file {file_name}. Nothing was started. A command is run as `-- CMD`.", code="no-such-file")
    interpreter = check_python(python)
    override = make_override(asked)
    try:
        with closing(Call(file, interpreter, name, words, lib_dir_for(home, interpreter))) as call:
            environ = make_environ(home)
            with open_client(home) as client, ended_by_signals():
                return _run(client, call, environ, as_json, override, home)
    except UserCodeFailed as err:
        click.echo(err.public, err=True)
        return 1
    except KeyboardInterrupt:
        say("\nsteelyard: interrupted; its functions were deleted.")
        return 130
    except Ended as err:
        return err.code


def _run(
    client: ApiClient, call: Call, environ: Mapping[str, str], as_json: bool, override: Mapping[str, Any], home: Path | None
) -> int:
    progress, suffix = Progress(quiet=True), make_suffix()
    images = _build_images(client, call.app, override, home)
    bundle = upload_code(client, call.app.root, progress)
    wanted = make_wanted(call.app, bundle, suffix, override, images)
    width = max(len(each.declared.fn) for each in wanted) if wanted else 0
    make_volumes(client, wanted)
    with Lease(client) as lease:
        views = []
        for each in wanted:
            lease.add(each.name)
            views.append(put_function(client, each.name, each.spec, LEASE_S))
        call.get_ready(environ)  # while the server is at work
        for view in views:
            settled = wait_settled(client, view, progress.show)
            progress.clear()
            if not is_reached(settled, view.revision):
                why = f"{view.name} could not be started ({settled.reason})."
                if settled.reason == Reason.IMPORT_FAILED:
                    raise UserCodeFailed(f"{settled.detail.rstrip()}\nsteelyard: {why}")
                raise Refused(f"{why} {settled.detail.rstrip()}", code="start-failed")
        with FunctionLogs(client, width) as logs:
            for each in wanted:
                logs.add(each.name, each.declared.fn)
            code = call.run(suffix, as_json)
            sys.stdout.flush()
        return code


def _build_images(client: ApiClient, app: AppFile, override: Mapping[str, Any], home: Path | None) -> dict[str, str]:
    if all(each.image is None for each in app.description.functions):
        return {}
    # imported here: whoever has no image must not wait for it
    from steelyard.cli.image_ask import ensure_app_images
    from steelyard.cli.patience import make_patience
    from steelyard.clock import SystemClock

    return ensure_app_images(client, app, Progress(), make_patience(home, SystemClock()), override)


def make_environ(home: Path | None) -> dict[str, str]:
    """By which the SDK finds this Steelyard."""
    paths, settings = find_settings(home)
    return {
        "STEELYARD_HOME": str(paths.home),
        "STEELYARD_API": settings.api_url,
        "STEELYARD_TOKEN": read_token(paths.admin_token),
    }
