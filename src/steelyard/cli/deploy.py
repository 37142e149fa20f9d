"""`steelyard deploy`: capture the code, hand it over, wait until the new revision gets the traffic.

Uploading is by content, so the same code is sent once; the deploy itself carries an Idempotency-Key. Until the new revision is
ready the old one keeps its traffic; when it never gets ready, the old one goes on.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import click
import msgspec
from click.core import ParameterSource

from steelyard.cli.app_deploy import (
    TWO_PYTHONS,
    DeployedRow,
    Takeover,
    explain_failure,
    is_reached,
    put_function,
    upload_code,
    wait_settled,
)
from steelyard.cli.app_file import check_python, declares_app, parse_file
from steelyard.cli.job_options import (
    name_image,
    network_option,
    own_network,
    parse_env,
    parse_uses,
    parse_volumes,
    secret_option,
    volume_option,
)
from steelyard.cli.numbers import Number
from steelyard.cli.output import Progress, print_json, say
from steelyard.cli.quantities import parse_bytes, parse_scale_on, parse_seconds, parse_share
from steelyard.cli.session import home_option, json_option, open_client
from steelyard.errors import Refused
from steelyard.model.function import FunctionSpec
from steelyard.model.gpu_demand import parse_gpu_demand
from steelyard.model.ids import NAME
from steelyard.model.image import is_reference
from steelyard.model.job import Resources
from steelyard.model.timing import Timing
from steelyard.wire.http import ApiClient

DEPLOY_HELP = """Deploy an app, a web app or a server as functions that sleep when nobody asks and wake when somebody does.

\b
TARGET is one of
  FILE.py          an app: all functions that `app = sy.App(...)` declares
  FILE.py:NAME     one function of an app
  FILE.py:APP      an ASGI app (FastAPI, Starlette, Litestar, plain)
  FILE.py          with --port, a program that opens it itself
  -- CMD...        any program, in the current folder: it opens --port,
                   or takes the socket by LISTEN_FDS (fd 3)
  nothing          with --image, what a container image itself runs
  MODEL            with --recipe, a language model: a folder, a GGUF file, or
                   a name of Hugging Face

The folder of FILE is captured, minus what .gitignore names; a command runs in the folder as it is.
A deploy of the same name is a new revision. It takes over when it is ready, and no request fails. With --traffic it takes over
only a part, which `steelyard traffic` moves; and when too many of its requests fail, the traffic goes back by itself.
Callers need a key (`steelyard keys create NAME`) unless it is --public.

Of an app each function is deployed for itself: one that fails leaves the others as they are. Options here win over those in the
file. Functions that it no longer declares are named, and deleted with --prune. An app of the same name that was deployed from
another file is not touched without --replace.

A recipe checks that the server is installed and that the model fits the GPUs, writes NAME.yaml with every option explained, and
does with it what `steelyard apply -f NAME.yaml` does: it shows the plan and asks. A file that you have changed stays as it is.

\b
Examples:
  steelyard deploy shop.py
  steelyard deploy shop.py --prune --env STAGE=live
  steelyard deploy shop.py:price --max-replicas 4
  steelyard deploy app.py:app --name hello --public
  steelyard deploy app.py:app --name hello --traffic 10 --tag next
  steelyard deploy embed.py:app --max-replicas 4 --concurrency 8 --idle-timeout 5m --memory 1GB
  steelyard deploy chat.py:app --gpus H100:2 --wake-bound 2s --idle-timeout 10m
  steelyard deploy embed.py:app --volume weights:/models:ro
  steelyard deploy server.py --port 8000 --python /opt/env/bin/python
  steelyard deploy --recipe vllm Qwen/Qwen3-8B --gpu H100:2
  steelyard deploy --recipe llama-cpp ./model.gguf --name chat --dry-run
  steelyard deploy --name files --port 8000 -- python3 -m http.server 8000
  steelyard deploy --name web --port 8080 --image docker://nginxinc/nginx-unprivileged
"""


@click.command(help=DEPLOY_HELP, short_help="Deploy an app, a web app or a server.")
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
@click.option(
    "--target-wait",
    metavar="TIME",
    help="Add replicas only when the last who waits would wait longer than that [default: whenever somebody waits].",
)
@click.option(
    "--target-busy",
    type=click.FloatRange(0, 1, min_open=True),
    default=1.0,
    show_default=True,
    help="Add a replica when more than this share of the places is busy.",
)
@click.option(
    "--buffer-replicas",
    type=click.IntRange(0, 1000),
    default=0,
    show_default=True,
    help="Kept ready beyond need while it is awake.",
)
@click.option(
    "--scale-on",
    multiple=True,
    metavar="METRIC=TARGET",
    help="Add replicas while a number of a program's page /metrics is more than that for each. May be repeated.",
)
@click.option(
    "--weights", type=click.Path(), help="A file or folder that each start reads: kept in the page cache while it sleeps."
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
    "--gpus",
    "--gpu",
    "gpus",
    metavar="DEMAND",
    help="GPUs that its replicas share, held while it is deployed: 1, H100:2, 24GB, A100:1g.10gb.",
)
@click.option(
    "--wake-bound",
    metavar="TIME",
    help="While it sleeps, lend its cores and GPUs to preemptible jobs; a wake has them back after that long at most "
    "[default: lend nothing].",
)
@click.option("--pool", metavar="NAME", help="On a machine of this pool [default: the home's own machine].")
@click.option("--spread", is_flag=True, help="On all machines of the pool, each with up to --max-replicas replicas.")
@click.option("--memory", help="Memory limit of each replica, for example 1GB [default: none].")
@click.option(
    "--env", "env", multiple=True, metavar="K=V", help="Set a variable (K alone takes the caller's value). May be repeated."
)
@volume_option
@secret_option
@click.option(
    "--python", "python", type=click.Path(), help="Interpreter of the code's environment [default: the one running this]."
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    help="The program opens this port on 127.0.0.1 itself; 0: a free one, told to each replica as $PORT.",
)
@click.option(
    "--readiness", metavar="PATH", default="", help="It serves once a GET of that is answered 2xx, as /health often is."
)
@click.option(
    "--recipe", type=click.Choice(["vllm", "llama-cpp"]), help="TARGET is a language model: write NAME.yaml and apply it."
)
@click.option("--dry-run", is_flag=True, help="Of a recipe: check everything, print the file, and leave it at that.")
@click.option("--yes", "-y", is_flag=True, help="Of a recipe: don't ask.")
@click.option("--overwrite", is_flag=True, help="Of a recipe: write NAME.yaml anew, whatever was changed in it.")
@click.option(
    "--image",
    metavar="IMAGE",
    help="Run it in that image of `steelyard image ls`, with the image's Python; or in a container: registry.host/path:tag, "
    "docker://name:tag, oci:/path or docker-archive:/path.",
)
@network_option
@click.option("--public", is_flag=True, help="Anybody who reaches the gateway may call it, without a key.")
@click.option("--as-root", is_flag=True, help="Run as root (only for the admin of a Steelyard that root started).")
@click.option("--replace", is_flag=True, help="Of an app: take over what another file, or nobody's app, deployed by its names.")
@click.option("--prune", is_flag=True, help="Of an app: delete its functions that the file no longer declares.")
@click.option(
    "--traffic",
    type=click.IntRange(0, 100),
    default=100,
    show_default=True,
    metavar="PERCENT",
    help="Of the requests, that the new revision gets; those before it keep the rest.",
)
@click.option("--tag", default="", help="An address of its own beside that: NAME@TAG, with --traffic 0 the only one.")
@click.option(
    "--rollback-errors",
    default="5%",
    show_default=True,
    metavar="PERCENT",
    help="Go back when so much more of its requests fail than before, within 10 minutes; `off`: never.",
)
@home_option
@json_option
@click.argument("target", nargs=-1, type=click.UNPROCESSED, metavar="TARGET")
@click.pass_context
def deploy(
    ctx: click.Context,
    home: Path | None,
    as_json: bool,
    target: tuple[str, ...],
    replace: bool,
    prune: bool,
    traffic: int,
    tag: str,
    rollback_errors: str,
    recipe: str | None,
    dry_run: bool,
    yes: bool,
    overwrite: bool,
    **asked: Any,
) -> None:
    given = {name: asked[name] for name in asked if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    if recipe is not None:
        from steelyard.cli.recipe import deploy_recipe

        for name in ("replace", "prune", "traffic", "tag", "rollback_errors", "as_json"):
            if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE:
                given[name] = True
        deploy_recipe(home, recipe, target, given, dry_run=dry_run, yes=yes, overwrite=overwrite)
        return
    if dry_run or overwrite:
        raise Refused(
            "--dry-run and --overwrite are for recipes (--recipe vllm MODEL). Nothing was deployed.", code="unfit-option"
        )
    takeover = Takeover(traffic, tag, parse_share(rollback_errors))
    if not target and not is_reference(asked["image"] or ""):
        raise click.UsageError("Say what to deploy: FILE.py:APP, `-- CMD`, or a container image that has a command (--image).")
    code = read_target(target, asked["port"], apps=True)
    if code.file is not None and asked["port"] is None and declares_app(code.file):
        from steelyard.cli.deploy_app import AppDeploy, deploy_app

        if deploy_app(home, code.file, AppDeploy(code.attr, given, replace, prune, as_json, takeover)):
            return
    for option, is_set in (("--replace", replace), ("--prune", prune)):
        if is_set:
            raise Refused(f"{option} is for apps (`app = sy.App(...)` in FILE.py). Nothing was deployed.", code="unfit-option")
    function, spec = make_function(code, asked)
    with open_client(home) as client:
        hand_over(client, function, spec, code.file, as_json=as_json, takeover=takeover)


def make_function(code: Target, asked: Mapping[str, Any]) -> tuple[str, FunctionSpec]:
    """Name and spec of an ASGI app or a program, but for its bundle. Raises Refused."""

    if asked["min_replicas"] > asked["max_replicas"]:
        raise Refused(
            f"--min-replicas {asked['min_replicas']} is more than --max-replicas {asked['max_replicas']}. Nothing was deployed.",
            code="bad-replicas",
        )
    if asked["image"] and asked["python"]:
        raise Refused(TWO_PYTHONS, code="two-pythons")
    image = name_image(asked["image"] or "", os.getcwd())
    interpreter = "" if image else check_python(asked["python"])
    spec = FunctionSpec(
        file=code.file.name if code.file and code.attr else None,
        attr=code.attr,
        argv=make_argv(code, interpreter, image),
        cwd=None if code.file or is_reference(image) else os.getcwd(),
        python=interpreter,
        image=image,
        own_network=own_network(asked),
        port=asked["port"],
        readiness=asked["readiness"],
        env=parse_env(asked["env"]),
        resources=Resources(
            cpus=asked["cpus"],
            memory_bytes=parse_bytes(asked["memory"]) if asked["memory"] else None,
            timing=Timing(asked["timing"]),
            gpus=parse_gpu_demand(asked["gpus"]) if asked["gpus"] else None,
        ),
        replicas_min=asked["min_replicas"],
        replicas_max=asked["max_replicas"],
        concurrency=asked["concurrency"],
        target_wait_ms=parse_seconds(asked["target_wait"]) * 1000 if asked["target_wait"] else None,
        target_busy=asked["target_busy"],
        buffer_replicas=asked["buffer_replicas"],
        scale_on=parse_scale_on(asked["scale_on"]),
        weights=os.path.abspath(asked["weights"]) if asked["weights"] else "",
        idle_timeout_s=parse_seconds(asked["idle_timeout"]),
        startup_deadline_s=parse_seconds(asked["startup_deadline"]),
        wake_bound_s=parse_seconds(asked["wake_bound"]) if asked["wake_bound"] else None,
        public=asked["public"],
        as_root=asked["as_root"],
        secrets=parse_uses(asked["secrets"]),
        volumes=parse_volumes(asked["volumes"]),
        pool=asked["pool"] or "",
        spread=asked["spread"],
    )
    return check_name(asked["name"] or code.name), spec


def hand_over(
    client: ApiClient,
    function: str,
    spec: FunctionSpec,
    file: Path | None,
    *,
    tell: Callable[[str], None] = click.echo,
    as_json: bool = False,
    takeover: Takeover | None = None,
) -> None:
    """Send the code where there is a file, deploy, and wait until the revision gets the traffic. Raises Refused when it fails."""
    progress = Progress()
    if is_reference(spec.image):
        from steelyard.cli.container_image import fetch_ahead, login_among
        from steelyard.clock import SystemClock

        fetch_ahead(client, spec.image, login_among(spec.secrets), SystemClock(), spec.pool)
    if file is not None:
        spec = msgspec.structs.replace(spec, bundle=upload_code(client, file.parent, progress))
    view = put_function(client, function, spec, takeover=takeover)
    try:
        settled = wait_settled(client, view, progress.show)
    except KeyboardInterrupt:
        progress.clear()
        say(f"The deploy of {function} revision {view.revision} goes on; `steelyard functions` shows how it ends.")
        sys.exit(130)
    progress.clear()
    if settled.revision > view.revision:
        tell(f"{function} revision {view.revision} was overtaken by revision {settled.revision}")
    elif not is_reached(settled, view.revision):
        if settled.detail:
            say(settled.detail.rstrip())
        raise Refused(explain_failure(settled, view.revision), code="function-failed")
    elif as_json:
        print_json([DeployedRow(function, view.revision, "ready", settled.url)])
    else:
        tell(f"{function} revision {view.revision} is ready: {settled.url}")
        if not settled.public:
            say(f"Callers need a key: `steelyard keys create NAME`, then  curl -H 'Authorization: Bearer KEY' {settled.url}")


class Target(NamedTuple):
    """What TARGET means: an app in a file, a program file, or a command line."""

    name: str
    file: Path | None
    attr: str | None
    argv: tuple[str, ...]


def read_target(words: tuple[str, ...], port: int | None, *, apps: bool = False) -> Target:
    """One word that names a Python file, or a command line; no word: what a container image says. Checks that the file is there
    and is Python; whether the app is in it only the import can say. `apps`: a file alone may be one with an app of functions."""
    if not words:
        return Target(name="", file=None, attr=None, argv=())
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
    if not colon and port is None and not (apps and declares_app(file)):
        raise Refused(
            f"{file_name} needs an app or a port: app = sy.App(...) and decorated functions in it, `{file_name}:APP` for an ASGI "
            "app, or --port for a program that opens one. Nothing was deployed.",
            code="bad-target",
        )
    parse_file(file)
    return Target(name=file.stem.lower().replace("_", "-"), file=file, attr=attr or None, argv=())


def make_argv(code: Target, python: str, image: str) -> tuple[str, ...]:
    """What a program's replica executes. `python`: of the machine; "" where an image brings it."""
    if code.file is None or code.attr is not None:
        return code.argv
    return (python or ("python3" if is_reference(image) else "python"), code.file.name)


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
