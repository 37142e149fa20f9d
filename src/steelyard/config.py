"""Where does one Steelyard keep its things, and which settings did its first `up` choose?

`Paths` is pure arithmetic on `--home`; `load_settings`/`save_settings` read and write `<home>/settings.json`.
Sockets live outside the home, under a short run directory, because a Unix socket path over 107 bytes fails.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from steelyard.errors import Refused, StoreDamaged

HOME_VERSION = 1
#: of the door for programs on machines of pools
CLUSTER_PORT = 7690


class Paths(msgspec.Struct, frozen=True):
    """Every path one home owns. Absolute; nothing is created by asking for it."""

    home: Path
    run: Path

    @property
    def settings(self) -> Path:
        return self.home / "settings.json"

    @property
    def admin_token(self) -> Path:
        """The admin's bearer token, mode 0600."""
        return self.home / "admin.token"

    @property
    def agent_token(self) -> Path:
        """What the agent shows the server, mode 0600."""
        return self.home / "agent.token"

    @property
    def attachment(self) -> Path:
        """Which Slurm cluster `cluster attach` found, and how; there once it did."""
        return self.home / "slurm.json"

    @property
    def secret_key(self) -> Path:
        """What secrets are sealed with, mode 0600; there once there is a secret. Without it a copy of the store tells none."""
        return self.home / "secrets.key"

    @property
    def authority(self) -> Path:
        """Key and certificate of the authority that vouches for our programs on other machines, mode 0600; there once it is
        needed."""
        return self.home / "authority.pem"

    @property
    def door(self) -> Path:
        """Certificate and key of the door for programs on machines of pools, mode 0600."""
        return self.home / "server" / "door.pem"

    @property
    def programs(self) -> Path:
        """One <program>.json per supervised program: pid, start time, boot id."""
        return self.home / "programs"

    @property
    def program_logs(self) -> Path:
        return self.home / "logs"

    @property
    def store(self) -> Path:
        return self.home / "server" / "steelyard.db"

    @property
    def bundles(self) -> Path:
        """Uploaded code, <sha256>.tar.gz, owned by the server."""
        return self.home / "server" / "bundles"

    @property
    def calls(self) -> Path:
        """Inputs and results of durable calls, owned by the server."""
        return self.home / "server" / "calls"

    @property
    def agent(self) -> Path:
        """The agent's durable state: assignment.json, intents/, handles/, exits/, ledger/."""
        return self.home / "agent"

    @property
    def unpacked(self) -> Path:
        """Unpacked bundles, <sha256>/, readable by workloads."""
        return self.home / "code"

    @property
    def environments(self) -> Path:
        """Images that were built here: one folder per owner, named by the uid and written by that owner's builds
        (`runtime/image`)."""
        return self.home / "environments"

    @property
    def workloads(self) -> Path:
        """One folder per attempt or replica: its stdout and stderr."""
        return self.home / "workloads"

    @property
    def images(self) -> Path:
        """Container images of this machine, see runtime/oci/store.py."""
        return self.home / "images"

    @property
    def volumes(self) -> Path:
        """One folder per volume that has none elsewhere, its owner's alone."""
        return self.home / "volumes"

    @property
    def gateway(self) -> Path:
        """bootstrap.json, cds.pb, rds.pb, mode 0600 (they name API keys)."""
        return self.home / "gateway"

    @property
    def spawner_socket(self) -> Path:
        return self.run / "spawner.sock"

    @property
    def envoy_admin_socket(self) -> Path:
        return self.run / "envoy.sock"

    @property
    def function_sockets(self) -> Path:
        return self.run / "fn"

    @property
    def template_sockets(self) -> Path:
        return self.run / "tmpl"

    @property
    def pages(self) -> Path:
        """Replica pages (shared memory), one file per replica, on tmpfs where /run is one."""
        return self.run / "pages"

    @property
    def relays(self) -> Path:
        """One folder per program behind the relay, for its private socket."""
        return self.run / "relay"

    @property
    def secrets(self) -> Path:
        """One folder per workload that is given secrets as files. It may be a link to where nothing is written to a disk."""
        return self.run / "secrets"

    @property
    def containers(self) -> Path:
        """What crun is told of each container, variables among it, and its notes. It may be a link to where nothing is written to
        a disk."""
        return self.run / "containers"

    @property
    def tag(self) -> str:
        """Eight hex digits that tell this home from others on the machine; also its cgroups' name."""
        return self.run.name


class Settings(msgspec.Struct, frozen=True):
    """What the first `up` of a home decided; later ones keep it."""

    version: int
    api_host: str
    api_port: int
    gateway_host: str
    gateway_port: int
    #: uid and gid that root's own work runs as; the user's own when Steelyard does not run as root
    work_uid: int
    work_gid: int
    #: who owns what the admin token submits
    admin_user: str
    admin_uid: int
    tls_cert: str | None = None
    tls_key: str | None = None
    #: where scratch folders are made; None: on the fastest local disk
    scratch_dir: str | None = None
    #: bytes that templates of functions may hold together; None: a quarter of the machine's memory
    template_memory_bytes: int | None = None
    #: bytes that images may take on the home's disk; None: a quarter of it
    image_space_bytes: int | None = None
    #: where programs on machines of pools reach the server, and on the port behind that their gateways this one; None: nowhere
    cluster_host: str | None = None
    cluster_port: int = CLUSTER_PORT
    #: the pilot whose home this is; "": it is nobody's pilot
    pilot: str = ""
    #: of another machine than the home's: its gateway lets in the home's alone, by certificates
    node_gateway: bool = False
    #: of a pilot: IP address and port at which the home's gateway hears this one, and the port of loopback where work finds it
    home_gateway: str = ""
    calls_port: int = 0

    @property
    def api_url(self) -> str:
        scheme = "https" if self.tls_cert else "http"
        return f"{scheme}://{self.api_host}:{self.api_port}"

    @property
    def gateway_url(self) -> str:
        return f"http://{self.gateway_host}:{self.gateway_port}"

    @property
    def cluster_gateway_port(self) -> int:
        return self.cluster_port + 1


def bind_address(host: str) -> str:
    """What is listened on where others reach this machine as `host`: the address itself; for a name all of them, since here it
    may mean loopback."""
    import ipaddress  # imported here: most commands need it not

    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return "0.0.0.0"


def default_home(environ: dict[str, str], uid: int) -> Path:
    """`STEELYARD_HOME`, else /var/lib/steelyard for root, else $XDG_DATA_HOME/steelyard (~/.local/share/steelyard)."""
    if environ.get("STEELYARD_HOME"):
        return Path(environ["STEELYARD_HOME"])
    if uid == 0:
        return Path("/var/lib/steelyard")
    data = environ.get("XDG_DATA_HOME") or str(Path(environ.get("HOME", "/")) / ".local/share")
    return Path(data) / "steelyard"


def _load_sha256() -> Callable[[bytes], Any]:
    """The interpreter's own: `hashlib` brings OpenSSL along, 3 ms of every command and 5 MB of the spawner."""
    for module in ("_sha2", "_sha256"):  # since 3.12, and before
        with contextlib.suppress(ImportError):
            return importlib.import_module(module).sha256
    return importlib.import_module("hashlib").sha256


def make_paths(home: Path, environ: dict[str, str], uid: int) -> Paths:
    """The paths of a home. The run directory's name is a hash of the home's real path, so homes never collide."""
    sha256 = _load_sha256()
    home = Path(os.path.realpath(home))
    tag = sha256(str(home).encode()).hexdigest()[:8]
    if uid == 0:
        base = Path("/run/steelyard")
    elif environ.get("XDG_RUNTIME_DIR"):
        base = Path(environ["XDG_RUNTIME_DIR"]) / "steelyard"
    else:
        import tempfile

        base = Path(tempfile.gettempdir()) / f"steelyard-{uid}"
    return Paths(home=home, run=base / tag)


def load_settings(paths: Paths) -> Settings | None:
    """The home's settings, or None where no `up` has been yet. A damaged or newer file is refused, never guessed."""
    try:
        raw = paths.settings.read_bytes()
    except FileNotFoundError:
        return None
    try:
        version = msgspec.json.decode(raw, type=dict[str, object]).get("version")
        if isinstance(version, int) and version > HOME_VERSION:
            raise Refused(
                f"{paths.home} was written by a newer Steelyard (home version {version}, this one knows {HOME_VERSION}). "
                "Nothing was changed. Use the newer version, or another --home.",
                code="home-newer",
            )
        return msgspec.json.decode(raw, type=Settings)
    except msgspec.MsgspecError as err:
        raise StoreDamaged(
            f"{paths.settings} is damaged ({err}). Nothing was changed. Restore it from a backup, or use another --home.",
            code="settings-damaged",
        ) from err


def write_file(path: Path, data: bytes, mode: int = 0o600, *, in_memory: bool = False) -> None:
    """Write a file others read: temp, fsync, rename, fsync of the folder (R12). Either the old or the new content is there.
    `in_memory`: it need not outlive the machine, and nothing is synced."""
    temp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        os.fchmod(fd, mode)
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        if not in_memory:
            os.fsync(fd)
    except BaseException:
        os.unlink(temp)
        raise
    finally:
        os.close(fd)
    os.rename(temp, path)
    if not in_memory:
        sync_folder(path.parent)


def write_files(
    files: Sequence[tuple[Path, bytes]], mode: int = 0o600, spare: Callable[[Path], Path | None] = lambda folder: None
) -> list[OSError | None]:
    """`write_file` for many at once, which costs the disk little more than one: everything is written before the first fsync, and
    each folder is synced once. `spare` names a file of that folder and mode that may be written over in the place of a new one.
    Per file None, or why it is not there (any more: a failed fsync of its folder counts too)."""
    results: list[OSError | None] = [None] * len(files)
    opened: dict[int, tuple[int, Path]] = {}
    for at, (path, data) in enumerate(files):
        temp = spare(path.parent) or path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            opened[at] = (os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, mode), temp)
            os.fchmod(opened[at][0], mode)
            view = memoryview(data)
            while view:
                view = view[os.write(opened[at][0], view) :]
            os.ftruncate(opened[at][0], len(data))
        except OSError as err:
            results[at] = err
    for at, (fd, temp) in opened.items():
        try:
            if results[at] is None:
                os.fsync(fd)
                os.rename(temp, files[at][0])
            else:
                os.unlink(temp)
        except OSError as err:
            results[at] = results[at] or err
        finally:
            os.close(fd)
    for folder in {path.parent for path, _ in files}:
        try:
            sync_folder(folder)
        except OSError as err:
            for at, (path, _) in enumerate(files):
                if path.parent == folder:
                    results[at] = results[at] or err
    return results


def sync_folder(folder: Path) -> None:
    """Make renames and new names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def save_settings(paths: Paths, settings: Settings) -> None:
    write_file(paths.settings, msgspec.json.format(msgspec.json.encode(settings), indent=2), 0o644)
