"""What must be true before programs may start? Makes a home on the first `up` (folders, tokens, settings), checks it on every
later one, and refuses with one sentence what cannot work. What a refused first `up` had made is taken away again.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import os
import pwd
import secrets
import shutil
import socket
import ssl
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from steelyard.config import (
    CLUSTER_PORT,
    HOME_VERSION,
    Paths,
    Settings,
    bind_address,
    load_settings,
    save_settings,
    write_file,
)
from steelyard.errors import Conflict, Refused, StoreDamaged
from steelyard.host.memory_folder import make_memory_folder
from steelyard.runtime.records import make_folders

API_PORT = 7600
GATEWAY_PORT = 7680
#: root's own work runs as this uid, which belongs to nobody
WORK_UID = 64000
#: how many ports are tried when nobody asked for a certain one
PORTS_TRIED = 200

#: what a first `up` makes; a folder with anything else in it is somebody else's
_OURS = frozenset(
    {
        "settings.json",
        "admin.token",
        "agent.token",
        "secrets.key",
        "programs",
        "logs",
        "server",
        "agent",
        "code",
        "workloads",
        "gateway",
        "runner",
        "up.lock",
    }
)


class UpOptions(msgspec.Struct, frozen=True):
    """What was asked of `up`; None means not asked."""

    port: int | None = None
    gateway_port: int | None = None
    host: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    work_uid: int | None = None
    scratch_dir: str | None = None
    template_memory_bytes: int | None = None
    image_space_bytes: int | None = None
    #: host and port
    cluster_address: tuple[str, int] | None = None


def prepare_home(paths: Paths, options: UpOptions, programs_run: bool) -> Settings:
    """The settings to start with. Makes the home where there is none; with `programs_run` addresses can't be changed any more."""
    _check_folder(paths)
    _check_scratch(options.scratch_dir)
    known = load_settings(paths)
    _check_tls(options)
    if known is not None:
        settings = _change(known, options, programs_run)
        if not programs_run:
            _check_ports(settings)
        _check_reachable(paths, settings.work_uid, settings.work_gid)
        _make_folders(paths)
        if settings != known:
            save_settings(paths, settings)
        _make_tokens(paths)
        return settings
    settings = _first_settings(options)
    _check_reachable(paths, settings.work_uid, settings.work_gid)
    with _undone_on_failure(paths):
        _make_folders(paths)
        _make_tokens(paths)
        # last: a home without settings is one that was not finished, and the next `up` begins anew
        save_settings(paths, settings)
    return settings


def make_home(paths: Paths, settings: Settings) -> None:
    """A home whose settings somebody else has decided. Refused where work could not reach it."""
    _check_reachable(paths, settings.work_uid, settings.work_gid)
    _make_folders(paths)
    _make_tokens(paths)
    save_settings(paths, settings)


def find_port(host: str) -> int:
    """One that is free now on that address of this machine."""
    return _choose_port(host, None, GATEWAY_PORT, "--gateway-port", taken=())


def lock_home(paths: Paths) -> int | None:
    """The home's lock as a descriptor, or None while another `up` holds it. It is held until every copy is closed."""
    lock_fd = os.open(paths.home / "up.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock_fd)
        return None
    return lock_fd


def make_run_folder(paths: Paths) -> None:
    """Sockets live here. On tmpfs as a rule, so it is made again after a reboot."""
    paths.run.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    for folder in (paths.run, paths.function_sockets, paths.template_sockets, paths.pages, paths.relays):
        folder.mkdir(mode=0o711, exist_ok=True)
    owner = paths.run.lstat().st_uid
    if owner != os.getuid():
        raise Refused(
            f"{paths.run} belongs to another user (uid {owner}). Remove it, or use another --home.", code="run-folder-taken"
        )
    make_memory_folder(paths.secrets, f"steelyard-{paths.tag}")
    make_memory_folder(paths.containers, f"steelyard-{paths.tag}-containers")


def find_missing(settings: Settings) -> list[str]:
    """What works less well here, a sentence each."""
    missing: list[str] = []
    if os.getuid() != 0:
        missing.append(
            "Not started by root: work runs as your own user, and limits and pinning hold only as far as the kernel "
            "lets a user set them "
            "(`steelyard machine` shows how far)."
        )
    elif not _can_execute(sys.executable, settings.work_uid, settings.work_gid):
        missing.append(
            f"Work runs as uid {settings.work_uid}, which can't execute {sys.executable}: functions need `deploy "
            "--python` with an "
            "interpreter that every user may execute, for example /usr/bin/python3."
        )
    return missing


def _check_folder(paths: Paths) -> None:
    home = paths.home
    if home.exists() and not home.is_dir():
        raise Refused(f"{home} is not a folder. Nothing was changed. Choose another --home.", code="home-bad")
    if home.is_dir():
        if not os.access(home, os.R_OK | os.W_OK | os.X_OK):
            raise Refused(
                f"{home} can't be written by this user. Nothing was changed. Choose another --home.", code="home-not-writable"
            )
        strangers = sorted(set(os.listdir(home)) - _OURS)
        if strangers and not paths.settings.exists():
            raise Refused(
                f"{home} holds other things ({', '.join(strangers[:3])}) and is no Steelyard home. Nothing was changed. "
                "Choose an empty or a new folder for --home.",
                code="home-bad",
            )
        return
    parent = next(folder for folder in home.parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise Refused(
            f"{home} can't be made: {parent} can't be written by this user. Choose another --home.", code="home-not-writable"
        )


def _check_scratch(folder: str | None) -> None:
    if folder is not None and not (os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)):
        raise Refused(
            f"{folder} is no folder that this user may write, so no scratch space can be made there. Nothing was changed.",
            code="scratch-dir-bad",
        )


def _check_tls(options: UpOptions) -> None:
    host, cert, key = options.host, options.tls_cert, options.tls_key
    if (cert is None) != (key is None):
        raise Refused("--tls-cert and --tls-key belong together. Nothing was started.", code="tls-incomplete")
    if cert is not None and key is not None:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key)
        except (OSError, ssl.SSLError) as err:
            raise Refused(
                f"{cert} and {key} are no usable certificate and key ({err}). Nothing was started.", code="tls-bad"
            ) from err
    if host is not None and not _is_loopback(host) and cert is None:
        raise Refused(
            f"Steelyard does not listen on {host} without TLS, since tokens would cross the network in the clear. "
            "Give --tls-cert and --tls-key, or leave --host away.",
            code="tls-needed",
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _first_settings(options: UpOptions) -> Settings:
    uid, gid = os.getuid(), os.getgid()
    if options.work_uid is not None:
        _check_work_uid(options.work_uid, uid)
    host = options.host or "127.0.0.1"
    api_port = _choose_port(host, options.port, API_PORT, "--port", taken=())
    work_uid = options.work_uid if options.work_uid is not None else (WORK_UID if uid == 0 else uid)
    return Settings(
        version=HOME_VERSION,
        api_host=host,
        api_port=api_port,
        gateway_host="127.0.0.1",
        gateway_port=_choose_port("127.0.0.1", options.gateway_port, GATEWAY_PORT, "--gateway-port", taken=(api_port,)),
        work_uid=work_uid,
        work_gid=work_uid if uid == 0 else gid,
        admin_user=_user_name(uid),
        admin_uid=uid,
        tls_cert=_absolute(options.tls_cert),
        tls_key=_absolute(options.tls_key),
        scratch_dir=_absolute(options.scratch_dir),
        template_memory_bytes=options.template_memory_bytes,
        image_space_bytes=options.image_space_bytes,
        **_cluster(options),
    )


def _cluster(options: UpOptions) -> dict[str, Any]:
    if options.cluster_address is None:
        return {}
    host, port = options.cluster_address
    return {"cluster_host": host, "cluster_port": port}


def _change(known: Settings, options: UpOptions, programs_run: bool) -> Settings:
    """The known settings with what was asked for now. Who work runs as is decided once: its files belong to that uid."""
    if options.work_uid is not None and options.work_uid != known.work_uid:
        raise Refused(
            f"Work of this home runs as uid {known.work_uid} since its first start. Use another --home for --work-uid.",
            code="work-uid-fixed",
        )
    wanted = msgspec.structs.replace(
        known,
        api_host=options.host or known.api_host,
        api_port=options.port or known.api_port,
        gateway_port=options.gateway_port or known.gateway_port,
        tls_cert=_absolute(options.tls_cert) or known.tls_cert,
        tls_key=_absolute(options.tls_key) or known.tls_key,
        scratch_dir=_absolute(options.scratch_dir) or known.scratch_dir,
        template_memory_bytes=options.template_memory_bytes or known.template_memory_bytes,
        image_space_bytes=options.image_space_bytes or known.image_space_bytes,
        **_cluster(options),
    )
    if not _is_loopback(wanted.api_host) and wanted.tls_cert is None:
        raise Refused(
            f"Steelyard does not listen on {wanted.api_host} without TLS. Give --tls-cert and --tls-key.", code="tls-needed"
        )
    if wanted != known and programs_run:
        raise Conflict(
            f"Steelyard runs already, at {known.api_url} and {known.gateway_url}. Its addresses can be changed after "
            "`steelyard down`.",
            code="already-running",
        )
    return wanted


def _check_work_uid(work_uid: int, uid: int) -> None:
    if uid != 0 and work_uid != uid:
        raise Refused("Only root can let work run as another user. Leave --work-uid away.", code="work-uid-needs-root")
    if work_uid == 0 and uid == 0:
        raise Refused(
            "Work does not run as root unless an admin asks for it job by job (`run --as-root`). Choose another --work-uid.",
            code="work-uid-root",
        )


def _choose_port(host: str, asked: int | None, default: int, option: str, taken: tuple[int, ...]) -> int:
    """The asked port or a refusal; else the default or the next one that is free."""
    if asked is not None:
        if asked in taken or not _port_free(host, asked):
            raise Refused(f"Port {asked} is in use on {host}. Nothing was started. Choose another {option}.", code="port-in-use")
        return asked
    for port in range(default, default + PORTS_TRIED):
        if port not in taken and _port_free(host, port):
            return port
    raise Refused(
        f"No port from {default} to {default + PORTS_TRIED - 1} is free on {host}. Name one with {option}.", code="port-in-use"
    )


def _check_ports(settings: Settings) -> None:
    if settings.api_port == settings.gateway_port:
        raise Refused(f"Port {settings.api_port} can't serve both. Choose another --port or --gateway-port.", code="port-in-use")
    addresses = [
        (settings.api_host, settings.api_port, "--port"),
        (settings.gateway_host, settings.gateway_port, "--gateway-port"),
    ]
    if settings.cluster_host is not None:
        here = bind_address(settings.cluster_host)
        addresses += [(here, port, "--cluster-address") for port in (settings.cluster_port, settings.cluster_gateway_port)]
    for host, port, option in addresses:
        if not _port_free(host, port):
            raise Refused(
                f"Port {port} is in use on {host} by another program. Nothing was started. Free it, or choose another {option}.",
                code="port-in-use",
            )


def parse_cluster_address(text: str) -> tuple[str, int]:
    """`HOST`, `HOST:PORT` or `[ADDRESS]:PORT`. Raises Refused."""
    if text.startswith("["):
        host, _, port = text.removeprefix("[").partition("]")
        port = port.removeprefix(":")
    else:
        host, _, port = text.partition(":") if text.count(":") == 1 else (text, "", "")
    words = bool(host) and host.isascii() and all(char.isalnum() or char in ".-:" for char in host)
    if not words or (port and not (port.isascii() and port.isdigit() and 0 < int(port) < (1 << 16) - 1)):
        raise Refused(f"{text!r} is no address. Write for example 10.0.0.5 or head.example.org:7690.", code="bad-address")
    if _is_loopback(host) or host in ("0.0.0.0", "::"):
        raise Refused(f"Other machines can't reach this one as {host}. Name it as they do.", code="bad-address")
    return host, int(port) if port else CLUSTER_PORT


def _port_free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as err:
            if isinstance(err, PermissionError):
                raise Refused(f"Port {port} needs root. Choose one above 1023.", code="port-in-use") from err
            return False
    return True


def _check_reachable(paths: Paths, uid: int, gid: int) -> None:
    """Work must be able to walk to its code below the home."""
    if uid == os.getuid():
        return
    for folder in reversed(paths.home.parents):
        if folder.exists() and not _may_enter(folder, uid, gid):
            raise Refused(
                f"Work runs as uid {uid}, which can't enter {folder}, so it could not reach its code under "
                f"{paths.home}. Nothing was changed. "
                f"Choose a --home elsewhere (for example /var/lib/steelyard), or `chmod o+x {folder}`.",
                code="home-unreachable",
            )


def _may_enter(folder: Path, uid: int, gid: int) -> bool:
    status = folder.stat()
    if status.st_uid == uid:
        return bool(status.st_mode & stat.S_IXUSR)
    if status.st_gid == gid:
        return bool(status.st_mode & stat.S_IXGRP)
    return bool(status.st_mode & stat.S_IXOTH)


def _can_execute(program: str, uid: int, gid: int) -> bool:
    """Asked of the kernel, by doing it: the path may lead through links, and what is linked may lie in a closed folder."""
    try:
        return (
            subprocess.run(
                [program, "-I", "-S", "-c", ""], user=uid, group=gid, extra_groups=(), capture_output=True, cwd="/", check=False
            ).returncode
            == 0
        )
    except OSError:
        return False


@contextlib.contextmanager
def _undone_on_failure(paths: Paths) -> Iterator[None]:
    existed = paths.home.exists()
    try:
        yield
    except OSError as err:
        if not existed:
            shutil.rmtree(paths.home, ignore_errors=True)
        raise Refused(
            f"{paths.home} can't be made ({err.strerror or err}). Nothing was left behind. Choose another --home.",
            code="home-not-writable",
        ) from err


def _make_folders(paths: Paths) -> None:
    """0711 where work walks through on its way to its code and logs, 0700 elsewhere."""
    paths.home.mkdir(mode=0o711, parents=True, exist_ok=True)
    os.chmod(paths.home, 0o711)
    for folder, mode in (
        (paths.programs, 0o755),
        (paths.program_logs, 0o700),
        (paths.store.parent, 0o700),
        (paths.agent, 0o700),
        (paths.gateway, 0o700),
        (paths.unpacked, 0o711),
        (paths.workloads, 0o711),
    ):
        folder.mkdir(mode=mode, exist_ok=True)
        os.chmod(folder, mode)
    make_folders(paths.agent)


def _make_tokens(paths: Paths) -> None:
    for file in (paths.admin_token, paths.agent_token):
        if not file.exists():
            write_file(file, secrets.token_urlsafe(32).encode() + b"\n")
        elif len(file.read_bytes().strip()) < 20:
            raise StoreDamaged(
                f"{file} is damaged. Nothing was started. Restore it, or delete it: the next `up` makes a new one.",
                code="token-damaged",
            )


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid-{uid}"


def _absolute(file: str | None) -> str | None:
    return None if file is None else os.path.abspath(file)
