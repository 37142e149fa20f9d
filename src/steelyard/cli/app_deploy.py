"""How does an app become functions? One captured folder, one spec per declared function, all handed over and waited for.

`deploy`, `serve` and `run` share it; what differs is in which names, and for how long.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from steelyard.cli.app_file import AppFile, Declared, check_python
from steelyard.cli.job_options import name_image, parse_env, parse_uses, parse_volumes
from steelyard.cli.output import Progress, say
from steelyard.cli.quantities import parse_bytes, parse_scale_on, parse_seconds
from steelyard.cli.session import new_key
from steelyard.errors import Conflict, Refused
from steelyard.model.function import FunctionSpec, FunctionState
from steelyard.model.gpu_demand import parse_gpu_demand
from steelyard.model.ids import NAME
from steelyard.model.job import Resources
from steelyard.model.secret import SecretUse, merge_uses
from steelyard.model.timing import Timing
from steelyard.scaling.rollout import ERRORS_MAX
from steelyard.wire.api import VolumeCreate, VolumeView
from steelyard.wire.function_api import FunctionDeploy, FunctionSchedule, FunctionView
from steelyard.wire.http import ApiClient

if TYPE_CHECKING:
    from steelyard.cli.bundle import Bundle

#: one long poll, and one between two looks at something else
POLL_S, LOOK_S = 10.0, 0.2
#: code up to that size is sent without asking whether it is there: an answer takes as long
ASKED_BYTES = 64 << 10
TWO_PYTHONS = "An image brings its own Python: leave out --python or --image. Nothing was deployed."
#: options that are parts of `Resources`
_RESOURCES = ("cpus", "memory_bytes", "timing", "gpus")


class Wanted(NamedTuple):
    """One function of an app, to be deployed as `name`."""

    name: str
    spec: FunctionSpec
    declared: Declared


class DeployedRow(msgspec.Struct, frozen=True, omit_defaults=True):
    """The shape of `deploy --json`."""

    name: str
    revision: int
    #: ready, failed, overtaken (by a newer revision), vanished (deployed, but no longer declared), deleted
    state: str
    url: str
    detail: str = ""


def make_wanted(
    app: AppFile,
    bundle: str,
    suffix: str = "",
    override: Mapping[str, Any] | None = None,
    images: Mapping[str, str] | None = None,
) -> list[Wanted]:
    """In the order of the file. `override` holds options of the command line, which win; `images` ids by the function's name in
    the file. Raises Refused."""
    return [
        Wanted(
            _check_name(declared.name, suffix),
            make_app_spec(app, declared, bundle, override or {}, (images or {}).get(declared.fn, "")),
            declared,
        )
        for declared in app.description.functions
    ]


def make_app_spec(app: AppFile, declared: Declared, bundle: str, override: Mapping[str, Any], image: str = "") -> FunctionSpec:
    file = Path(declared.file)
    if not file.is_relative_to(app.root):
        raise Refused(
            f"{declared.name} is declared in {file}, outside of {app.root}, the folder that is captured. Nothing was deployed. "
            "Keep what belongs to an app in one folder.",
            code="outside-folder",
        )
    options = {**declared.options, **override}
    env = {**declared.options.get("env", {}), **override.get("env", {})}
    uses = merge_uses(msgspec.convert(declared.options.get("secrets", ()), tuple[SecretUse, ...]), override.get("secrets", ()))
    if image and "image" not in override and not image.startswith("built:") and (login := find_login(declared.image)):
        uses = merge_uses((SecretUse(login, for_registry=True),), uses)
    options["volumes"] = merge_volumes(declared.options.get("volumes", []), override.get("volumes", []))
    python, image = options.pop("python", None), options.pop("image", None) or image
    if "python" in override and "image" in override:
        raise Refused(TWO_PYTHONS, code="two-pythons")
    resources = Resources(
        cpus=options.get("cpus", 1.0),
        memory_bytes=options.get("memory_bytes"),
        timing=Timing(options.get("timing", Timing.BEST_EFFORT.value)),
        gpus=parse_gpu_demand(options["gpus"]) if options.get("gpus") else None,
    )
    fields = {name: value for name, value in options.items() if name not in (*_RESOURCES, "env", "secrets")}
    unknown = sorted(set(fields) - set(FunctionSpec.__struct_fields__))
    if unknown:
        raise Refused(f"{declared.name}: this Steelyard can't give {unknown[0]!r}. Nothing was deployed.", code="bad-option")
    spec = FunctionSpec(
        file=file.relative_to(app.root).as_posix(),
        attr=declared.attr,
        bundle=bundle,
        python="" if image else check_python(python or app.python),
        image=image,
        port=declared.port,
        env=env,
        resources=resources,
        app=app.description.app,
        origin=str(app.file),
        interface="call" if declared.interface == "call" else "http",
        secrets=uses,
    )
    return msgspec.convert({**msgspec.to_builtins(spec), **fields}, FunctionSpec)


def find_login(asked: Mapping[str, Any] | None) -> str:
    """The secret that the image itself names as the login at its registry; "" without one."""
    return "" if asked is None else asked["base"].get("secret", "")


def merge_volumes(declared: Sequence[dict[str, Any]], given: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of the command line beside the file's; they win where path or name are the same."""
    names, paths = {each["name"] for each in given}, {each["path"] for each in given if each["path"]}
    return [*(each for each in declared if each["name"] not in names and each["path"] not in paths), *given]


def make_volumes(client: ApiClient, wanted: Sequence[Wanted]) -> None:
    """Those that their functions want made, and are not there."""
    asked = {
        volume["name"]
        for each in wanted
        for volume in each.declared.options.get("volumes", [])
        if volume["create_if_missing"] and any(mount.name == volume["name"] for mount in each.spec.volumes)
    }
    for name in sorted(asked):
        with contextlib.suppress(Conflict):  # it is there
            client.fetch(VolumeView, "POST", "/v1/volumes", body=VolumeCreate(name), key=new_key())
            say(f"Made volume {name}")


def make_override(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the command line by the names that the SDK's have. Raises Refused."""
    read: dict[str, tuple[str, Callable[[Any], Any]]] = {
        "memory": ("memory_bytes", parse_bytes),
        "env": ("env", parse_env),
        "secrets": ("secrets", parse_uses),
        "volumes": ("volumes", lambda texts: msgspec.to_builtins(parse_volumes(texts))),
        "min_replicas": ("replicas_min", int),
        "max_replicas": ("replicas_max", int),
        "idle_timeout": ("idle_timeout_s", parse_seconds),
        "target_wait": ("target_wait_ms", lambda text: parse_seconds(text) * 1000),
        "scale_on": ("scale_on", lambda words: msgspec.to_builtins(parse_scale_on(words))),
        "weights": ("weights", os.path.abspath),
        "image": ("image", lambda text: name_image(text, os.getcwd())),
        "network": ("own_network", lambda text: text == "none"),
        "startup_deadline": ("startup_deadline_s", parse_seconds),
        "wake_bound": ("wake_bound_s", parse_seconds),
    }
    made: dict[str, Any] = {}
    for option, value in asked.items():
        name, convert = read.get(option, (option, lambda same: same))
        made[name] = convert(value)
    return made


def upload_code(client: ApiClient, folder: Path, progress: Progress) -> str:
    """Capture the folder and send it where the server does not have it; its sha256."""
    from steelyard.cli.bundle import capture_folder

    progress.show(f"Capturing {folder}")
    return send_bundle(client, capture_folder(folder), progress)


def send_bundle(client: ApiClient, bundle: Bundle, progress: Progress) -> str:
    """Send it where the server does not have it, and close it; its sha256."""
    with bundle.file:
        path = f"/v1/bundles/{bundle.sha256}"
        if bundle.size_bytes <= ASKED_BYTES or not client.has(path):
            progress.show(f"Sending {bundle.size_bytes / 1e6:.1f} MB")
            client.upload(path, bundle.file, bundle.size_bytes, "application/gzip")
    progress.clear()
    for note in bundle.notes:
        say(f"Note: {note}")
    return bundle.sha256


class Takeover(NamedTuple):
    """How a new revision comes to its traffic, as `FunctionDeploy` says it."""

    percent: int = 100
    tag: str = ""
    errors_max: float | None = ERRORS_MAX


#: of what somebody is working on: whether it errs is what they want to see
TRIED = Takeover(errors_max=None)


def put_function(
    client: ApiClient,
    name: str,
    spec: FunctionSpec,
    lease_s: float | None = None,
    schedule: Mapping[str, Any] | None = None,
    takeover: Takeover | None = None,
) -> FunctionView:
    """`schedule`: as the app's description tells it."""
    when = None if schedule is None else msgspec.convert(schedule, FunctionSchedule)
    how = takeover or (Takeover() if lease_s is None else TRIED)
    body = FunctionDeploy(spec, lease_s, when, *how)
    return client.fetch(FunctionView, "PUT", f"/v1/functions/{name}", body=body, key=new_key())


def wait_settled(
    client: ApiClient, view: FunctionView, show: Callable[[str], None], enough: Callable[[], bool] | None = None
) -> FunctionView:
    """Until the revision is reached, has failed, another deploy has overtaken it, or `enough` says so (asked often)."""
    revision, poll_s = view.revision, POLL_S if enough is None else LOOK_S
    while view.revision == revision and not is_reached(view, revision) and view.state != FunctionState.FAILED:
        if enough is not None and enough():
            break
        show(f"{view.name} revision {revision}: {view.detail or 'being made ready'}")
        view = client.fetch(FunctionView, "GET", f"/v1/functions/{view.name}", params={"wait_s": poll_s}, wait_s=poll_s)
    return view


def is_reached(view: FunctionView, revision: int) -> bool:
    return view.routed_revision == revision or revision in view.routes.revisions


def explain_failure(view: FunctionView, revision: int) -> str:
    if view.revision < revision:
        return f"{view.name} went back from revision {revision}; `steelyard revisions {view.name}` says why."
    serves = f"Revision {view.routed_revision} goes on serving." if view.routed_revision else "Nothing serves it."
    return f"{view.name} revision {revision} FAILED ({view.reason}). {serves} Mend the code and deploy again."


def find_app(client: ApiClient, app: str) -> list[FunctionView]:
    """The functions of an app that are deployed to stay."""
    found = client.fetch(list[FunctionView], "GET", "/v1/functions")
    return [view for view in found if view.app == app and view.expires_at is None]


def find_foreign(views: Sequence[FunctionView], origin: str) -> list[FunctionView]:
    """Those that were declared in another file. Pure."""
    return [view for view in views if view.origin != origin]


def _check_name(base: str, suffix: str) -> str:
    name = base + suffix
    if not NAME.match(name):
        raise Refused(
            f"{name!r} can't be a function's name: at most 63 small letters, digits and dashes. Nothing was deployed. Give the "
            "function a shorter name=.",
            code="bad-name",
        )
    return name
