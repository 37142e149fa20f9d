"""`steelyard deploy`: capture the code, hand it over, wait until the new revision gets the traffic.

Uploading is by content, so the same code is sent once; the deploy itself carries an Idempotency-Key. Until the new revision is
ready the old one keeps its traffic; when it never gets ready, the old one goes on.
"""

from __future__ import annotations

import ast
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import click
import msgspec

from steelyard.cli.numbers import Number
from steelyard.cli.output import Progress, say
from steelyard.cli.quantities import parse_bytes, parse_seconds
from steelyard.cli.session import home_option, new_key, open_client
from steelyard.errors import Refused
from steelyard.model.function import FunctionSpec, FunctionState
from steelyard.model.gpu_demand import parse_gpu_demand
from steelyard.model.ids import NAME
from steelyard.model.job import Resources
from steelyard.model.timing import Timing
from steelyard.wire.api import FunctionDeploy, FunctionView
from steelyard.wire.http import ApiClient

#: one long poll
POLL_S = 10.0

DEPLOY_HELP = """Deploy an ASGI app or a server as a function that sleeps when nobody asks and wakes when somebody does.

\b
TARGET is one of
  FILE.py:APP      an ASGI app (FastAPI, Starlette, Litestar, plain)
  FILE.py          a program that opens --port itself
  -- CMD...        any program, in the current folder: it opens --port,
                   or takes the socket by LISTEN_FDS (fd 3)

The folder of FILE is captured, minus what .gitignore names; a command runs in the folder as it is.
A deploy of the same name is a new revision. It takes over when it is ready, and no request fails.
Callers need a key (`steelyard keys create NAME`) unless it is --public.

\b
Examples:
  steelyard deploy app.py:app --name hello --public
  steelyard deploy embed.py:app --max-replicas 4 --concurrency 8 --idle-timeout 5m --memory 1GB
  steelyard deploy chat.py:app --gpus H100:2 --wake-bound 2s --idle-timeout 10m
  steelyard deploy server.py --port 8000 --python /opt/env/bin/python
  steelyard deploy --name files --port 8000 -- python3 -m http.server 8000
"""


@click.command(help=DEPLOY_HELP, short_help="Deploy an ASGI app or a server as a function.")
@click.option("--name", help="Name in its address: small letters, digits, dashes [default: the file's].")
@click.option(
    "--min-replicas", type=click.IntRange(0, 1000), default=0, show_default=True, help="Kept awake even when nobody asks."
)
@click.option("--max-replicas", type=click.IntRange(1, 1000), default=1, show_default=True, help="Started at most when many ask.")
@click.option(
    "--concurrency",
    type=click.IntRange(1, 10_000),
    default=8,
    show_default=True,
    help="Requests that one replica holds at a time.",
)
@click.option("--idle-timeout", default="60s", show_default=True, help="Asleep after that long without a request.")
@click.option("--startup-deadline", default="60s", show_default=True, help="A replica that does not serve by then has failed.")
@click.option("--cpus", type=Number(), default=1.0, show_default=True, help="Cores' worth of share for each replica.")
@click.option(
    "--timing",
    type=click.Choice([Timing.BEST_EFFORT.value, Timing.DEDICATED.value]),
    default=Timing.BEST_EFFORT.value,
    show_default=True,
    help="dedicated: whole cores that only this function's replicas run on, held while it is deployed.",
)
@click.option(
    "--gpus", metavar="DEMAND", help="GPUs that its replicas share, held while it is deployed: 1, H100:2, 24GB, A100:1g.10gb."
)
@click.option(
    "--wake-bound",
    metavar="TIME",
    help="While it sleeps, lend its cores and GPUs to preemptible jobs; a wake has them back after that long at most "
    "[default: lend nothing].",
)
@click.option("--memory", help="Memory limit of each replica, for example 1GB [default: none].")
@click.option(
    "--env", "env", multiple=True, metavar="K=V", help="Set a variable (K alone takes the caller's value). May be repeated."
)
@click.option(
    "--python", "python", type=click.Path(), help="Interpreter of the code's environment [default: the one running this]."
)
@click.option("--port", type=click.IntRange(1, 65535), help="The program opens this port on 127.0.0.1 itself.")
@click.option("--public", is_flag=True, help="Anybody who reaches the gateway may call it, without a key.")
@click.option("--as-root", is_flag=True, help="Run as root (only for the admin of a Steelyard that root started).")
@home_option
@click.argument("target", nargs=-1, required=True, type=click.UNPROCESSED, metavar="TARGET")
def deploy(
    name: str | None,
    min_replicas: int,
    max_replicas: int,
    concurrency: int,
    idle_timeout: str,
    startup_deadline: str,
    cpus: float,
    timing: str,
    gpus: str | None,
    wake_bound: str | None,
    memory: str | None,
    env: tuple[str, ...],
    python: str | None,
    port: int | None,
    public: bool,
    as_root: bool,
    home: Path | None,
    target: tuple[str, ...],
) -> None:
    from steelyard.cli.job_options import parse_env

    code = read_target(target, port)
    function = check_name(name or code.name)
    if min_replicas > max_replicas:
        raise Refused(
            f"--min-replicas {min_replicas} is more than --max-replicas {max_replicas}. Nothing was deployed.",
            code="bad-replicas",
        )
    interpreter = check_python(python)
    spec = FunctionSpec(
        file=code.file.name if code.file and code.attr else None,
        attr=code.attr,
        argv=(interpreter, code.file.name) if code.file and not code.attr else code.argv,
        cwd=None if code.file else os.getcwd(),
        python=interpreter,
        port=port,
        env=parse_env(env),
        resources=Resources(
            cpus=cpus,
            memory_bytes=parse_bytes(memory) if memory else None,
            timing=Timing(timing),
            gpus=parse_gpu_demand(gpus) if gpus else None,
        ),
        replicas_min=min_replicas,
        replicas_max=max_replicas,
        concurrency=concurrency,
        idle_timeout_s=parse_seconds(idle_timeout),
        startup_deadline_s=parse_seconds(startup_deadline),
        wake_bound_s=parse_seconds(wake_bound) if wake_bound else None,
        public=public,
        as_root=as_root,
    )
    with open_client(home) as client:
        hand_over(client, function, spec, code.file)


def hand_over(
    client: ApiClient, function: str, spec: FunctionSpec, file: Path | None, *, tell: Callable[[str], None] = click.echo
) -> None:
    """Send the code where there is a file, deploy, and wait until the revision gets the traffic. Raises Refused when it fails."""
    progress = Progress()
    if file is not None:
        spec = msgspec.structs.replace(spec, bundle=_upload(client, file.parent, progress))
    view = client.fetch(FunctionView, "PUT", f"/v1/functions/{function}", body=FunctionDeploy(spec), key=new_key())
    try:
        _wait_routed(client, view, progress, tell)
    except KeyboardInterrupt:
        progress.clear()
        say(f"The deploy of {function} revision {view.revision} goes on; `steelyard functions` shows how it ends.")
        sys.exit(130)


class Target(NamedTuple):
    """What TARGET means: an app in a file, a program file, or a command line."""

    name: str
    file: Path | None
    attr: str | None
    argv: tuple[str, ...]


def read_target(words: tuple[str, ...], port: int | None) -> Target:
    """One word that names a Python file, or a command line. Checks that the file is there and is Python; whether the app is in
    it only the import can say."""
    first, *rest = words
    if rest or not re.search(r"\.py(:|$)", first):
        if first.endswith(".py") or ".py:" in first:
            raise Refused(
                f"{' '.join(words)!r} is no target. Write FILE.py:APP, or `-- CMD...` with the program first.", code="bad-target"
            )
        return Target(name="", file=None, attr=None, argv=words)
    file_name, colon, attr = first.rpartition(":") if ".py:" in first else (first, "", "")
    file = Path(os.path.abspath(file_name))
    if not file.is_file():
        raise Refused(f"There is no file {file_name}. Nothing was deployed.", code="no-such-file")
    if colon and not all(part.isidentifier() for part in attr.split(".")):
        raise Refused(f"{attr!r} can't be the name of an app. Write FILE.py:APP, for example app.py:app.", code="bad-target")
    if not colon and port is None:
        raise Refused(
            f"{file_name} needs an app or a port: `{file_name}:APP` for an ASGI app, or --port for a program that "
            "opens one. Nothing was deployed.",
            code="bad-target",
        )
    try:
        ast.parse(file.read_bytes(), str(file_name))
    except (SyntaxError, ValueError) as err:
        where = f", line {err.lineno}" if isinstance(err, SyntaxError) and err.lineno else ""
        raise Refused(
            f"{file_name}{where} is not Python: {err.msg if isinstance(err, SyntaxError) else err}. Nothing was deployed.",
            code="bad-syntax",
        ) from err
    except OSError as err:
        raise Refused(f"{file_name} can't be read ({err.strerror}). Nothing was deployed.", code="code-unreadable") from err
    return Target(name=file.stem.lower().replace("_", "-"), file=file, attr=attr or None, argv=())


def check_name(name: str) -> str:
    if not name:
        raise Refused("A command needs a name: give --name. Nothing was deployed.", code="bad-name")
    if not NAME.match(name):
        raise Refused(
            f"{name!r} can't be a function's name: it becomes a host name, so small letters, digits and dashes, at "
            "most 63, no dash at either end.",
            code="bad-name",
        )
    return name


def check_python(python: str | None) -> str:
    """Absolute, but not with links followed: an environment's interpreter is a link, and following it loses the environment."""
    interpreter = os.path.abspath(python or sys.executable)
    if not os.path.isfile(interpreter) or not os.access(interpreter, os.X_OK):
        raise Refused(f"--python {interpreter} is no program. Nothing was deployed.", code="no-such-python")
    return interpreter


def _upload(client: ApiClient, folder: Path, progress: Progress) -> str:
    from steelyard.cli.bundle import capture_folder

    progress.show(f"Capturing {folder}")
    bundle = capture_folder(folder)
    with bundle.file:
        path = f"/v1/bundles/{bundle.sha256}"
        if not client.has(path):
            progress.show(f"Sending {bundle.size_bytes / 1e6:.1f} MB of code")
            client.upload(path, bundle.file, bundle.size_bytes, "application/gzip")
    progress.clear()
    for note in bundle.notes:
        say(f"Note: {note}")
    return bundle.sha256


def _wait_routed(client: ApiClient, view: FunctionView, progress: Progress, tell: Callable[[str], None]) -> None:
    """Until the revision gets traffic, has failed, or another deploy has overtaken it."""
    revision = view.revision
    while view.revision == revision and view.routed_revision != revision and view.state != FunctionState.FAILED:
        progress.show(f"{view.name} revision {revision}: {view.detail or 'being made ready'}")
        view = client.fetch(FunctionView, "GET", f"/v1/functions/{view.name}", params={"wait_s": POLL_S}, wait_s=POLL_S)
    progress.clear()
    if view.revision > revision:
        tell(f"{view.name} revision {revision} was overtaken by revision {view.revision}")
        return
    if view.routed_revision != revision:
        serves = f"Revision {view.routed_revision} goes on serving." if view.routed_revision else "Nothing serves it."
        if view.detail:
            say(view.detail.rstrip())
        raise Refused(
            f"{view.name} revision {revision} FAILED ({view.reason}). {serves} Mend the code and deploy again.",
            code="function-failed",
        )
    tell(f"{view.name} revision {revision} is ready: {view.url}")
    if not view.public:
        say(f"Callers need a key: `steelyard keys create NAME`, then  curl -H 'Authorization: Bearer KEY' {view.url}")
