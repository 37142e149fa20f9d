"""`steelyard pilot FOLDER...`: the program of a pilot. It makes this node, or what Slurm gave of it, a machine of a pool.

An allocation of several nodes has it on each, as the tasks of one step, each with a folder of its own.

It makes a home on the node's own disk, runs spawner, agent and gateway in it, and carries their words to the server
(`cli/forwarder.py`). SIGUSR1, which Slurm sends before the time limit, tells the server that nothing new should come; SIGTERM
ends all work and everything of ours, functions as soon as another machine has taken over and what was begun here is answered, as
far as Slurm leaves time for that. It ends with code 0 then, and leaves nothing but its log and the outputs of jobs.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import click
import msgspec

from steelyard import __version__
from steelyard.agent.ledger import serves_functions
from steelyard.cli.ending import PROGRAM_GRACE_S, WORK_GRACE_S, end_everything
from steelyard.cli.forwarder import Forwarder
from steelyard.cli.home import find_port, lock_home, make_home, make_run_folder
from steelyard.cli.output import say
from steelyard.cli.pilot_certificates import Renewer, keep_certificates
from steelyard.cli.programs import make_programs
from steelyard.cli.supervisor import Supervisor
from steelyard.cli.up import prepare_gateway
from steelyard.clock import Clock, SystemClock
from steelyard.config import HOME_VERSION, Paths, Settings, make_paths, write_file
from steelyard.errors import NotFound, Refused, SteelyardError
from steelyard.gateway.listeners import LOOPBACK
from steelyard.wire.http import ApiClient
from steelyard.wire.pilot import PilotPass
from steelyard.wire.pools import PilotDrain

#: the server may be away when it is told that the end is near
RETRY_S = 1.0
#: of the time that Slurm leaves after SIGTERM: for ending all of ours and its work
ENDING_S = PROGRAM_GRACE_S + WORK_GRACE_S + 3.0
#: where the server has not heard by then that the machine goes, nobody takes over: most often `down` ends everything
HEAR_S, LOOK_S = 3.0, 0.1


@click.command(hidden=True, help="The program of an allocation that is a machine of a pool.")
@click.argument("folders", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("--kill-wait", type=float, default=30.0, help="Slurm's KillWait, in seconds.")
def pilot(folders: tuple[Path, ...], kill_wait: float) -> None:
    # from here on the supervisor's: a signal that comes while things are being made ends what there is
    told = _Told()
    folder = folders[0]
    claim(folder, os.environ.get("SLURM_JOB_ID", ""), os.environ.get("SLURM_PROCID", "0"))
    if len(folders) > 1:
        folder = folders[int(os.environ["SLURM_PROCID"])]
        write_to(folder / "log")
    shown = take_pass(folder)
    if shown.version != __version__:
        raise Refused(
            f"The server is Steelyard {shown.version}, and {sys.executable} on {socket.gethostname()} has {__version__}. Install "
            "the same version on the nodes.",
            code="version-differs",
        )
    home = make_place(os.environ, shown.pilot)
    try:
        run_pilot(folder, home, shown, told, kill_wait, SystemClock())
    finally:
        shutil.rmtree(home, ignore_errors=True)


def claim(folder: Path, job: str, task: str) -> None:
    """Of two allocations for the same pilots only the first begins. Refused for the other. `folder`: of the first pilot."""
    claimed, mine = folder / "claim", folder / f"claim.{job}.{task}"
    try:
        mine.write_text(job)
        try:
            os.link(mine, claimed)
        except FileExistsError:
            if claimed.read_text() != job:
                raise Refused("Another allocation runs this pilot already; this one ends.", code="taken") from None
        finally:
            mine.unlink()
    except OSError as err:
        raise Refused(
            f"{folder} can't be written on {socket.gethostname()} ({err.strerror}): is the folder of `cluster attach` shared "
            "with this node?",
            code="folder-not-shared",
        ) from err


def write_to(log: Path) -> None:
    """What we and all that we start say from now on."""
    log_fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    for stream_fd in (1, 2):
        os.dup2(log_fd, stream_fd)
    os.close(log_fd)


def take_pass(folder: Path) -> PilotPass:
    """Read once: the keys in it lie on shared storage no longer than they must."""
    file = folder / "pass.json"
    try:
        shown = msgspec.json.decode(file.read_bytes(), type=PilotPass)
        file.unlink()
    except (OSError, msgspec.MsgspecError) as err:
        raise Refused(f"{file} can't be read: {err}. The pilot is given up, and another one asked for.", code="pass-bad") from err
    return shown


def make_place(environ: Mapping[str, str], name: str) -> Path:
    """A new folder on a disk of the node's own."""
    for variable in ("SLURM_TMPDIR", "TMPDIR"):
        if environ.get(variable) and os.path.isdir(environ[variable]):
            base = Path(environ[variable])
            break
    else:
        base = Path("/tmp")
    begins = f"steelyard-{os.getuid()}-"
    for left in base.glob(f"{begins}*-*"):
        _sweep(left, environ)
    home = base / f"{begins}{name}-{environ.get('SLURM_JOB_ID', os.getpid())}"
    try:
        home.mkdir(mode=0o711)
    except OSError as err:
        raise Refused(f"{home} can't be made: {err.strerror}.", code="home-bad") from err
    return home


def _sweep(home: Path, environ: Mapping[str, str]) -> None:
    """What a pilot left that was killed by force. One that lives holds its home's lock."""
    if home.is_symlink() or not home.is_dir() or home.lstat().st_uid != os.getuid():
        return
    paths = make_paths(home, dict(environ), os.getuid())
    lock_fd = lock_home(paths)
    if lock_fd is not None:
        shutil.rmtree(paths.run, ignore_errors=True)
        shutil.rmtree(home, ignore_errors=True)
        os.close(lock_fd)


def run_pilot(folder: Path, home: Path, shown: PilotPass, told: _Told, kill_wait_s: float, clock: Clock) -> None:
    paths = make_paths(home, dict(os.environ), os.getuid())
    lock_fd = lock_home(paths)
    listening = socket.create_server(("127.0.0.1", 0))
    address = find_address(shown)
    with socket.create_server((LOOPBACK, 0)) as free:  # pilots that begin on a node at one moment get different ones
        calls_port = free.getsockname()[1]
    settings = make_settings(shown, listening.getsockname()[1], address, find_port(address), calls_port)
    context = unpack(folder, paths, settings, shown, clock)
    forwarder = Forwarder(listening, shown.host, shown.port, context)
    forwarder.start()
    Renewer(paths, settings, shown, forwarder, clock).start()
    make_run_folder(paths)
    programs = [each for each in make_programs(paths, prepare_gateway(paths, settings, clock)) if each.name != "server"]
    supervisor = Supervisor(paths, programs, clock, say)
    told.watch(lambda: _drain(settings, shown, told))
    try:
        if not told.ended:
            supervisor.run()
            told.drain()
            hand_over(paths, told, kill_wait_s - ENDING_S, clock)
    finally:
        told.ended = True
        say("Ending this machine and all its work.")
        end_everything(paths, clock, say)
        if lock_fd is not None:
            os.close(lock_fd)


def hand_over(paths: Paths, told: _Told, within_s: float, clock: Clock) -> None:
    """Until functions are somewhere else and nobody waits for an answer from here; no longer than that."""
    began_ns, pause = clock.mono_ns(), threading.Event()
    while serves_functions(paths.agent):
        gone_s = (clock.mono_ns() - began_ns) / 1e9
        if gone_s > within_s or (gone_s > HEAR_S and not told.heard):
            return
        pause.wait(LOOK_S)


def find_address(shown: PilotPass) -> str:
    """This machine's own, on the way to the server. Nothing is sent."""
    family = socket.getaddrinfo(shown.host, shown.port, type=socket.SOCK_DGRAM)[0][0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((shown.host, shown.port))
        return probe.getsockname()[0]


def find_home(shown: PilotPass) -> str:
    """Where the home's gateway hears those of machines. Envoy is told an address: it does not ask all that this system may."""
    host = socket.getaddrinfo(shown.host, shown.gateway_port, type=socket.SOCK_STREAM)[0][4][0]
    return f"[{host}]:{shown.gateway_port}" if ":" in str(host) else f"{host}:{shown.gateway_port}"


def make_settings(shown: PilotPass, port: int, address: str, gateway_port: int, calls_port: int) -> Settings:
    root = os.getuid() == 0
    return Settings(
        version=HOME_VERSION,
        api_host="127.0.0.1",
        api_port=port,
        gateway_host=address,
        gateway_port=gateway_port,
        work_uid=shown.work_uid if root else os.getuid(),
        work_gid=shown.work_gid if root else os.getgid(),
        admin_user=shown.admin_user,
        admin_uid=shown.admin_uid,
        pilot=shown.pilot,
        node_gateway=True,
        home_gateway=find_home(shown),
        calls_port=calls_port,
    )


def unpack(folder: Path, paths: Paths, settings: Settings, shown: PilotPass, clock: Clock) -> ssl.SSLContext:
    """What the forwarder is to connect with."""
    # outputs of jobs are read when the node is somebody else's again
    paths.workloads.symlink_to(folder / "workloads")
    make_home(paths, settings)
    write_file(paths.agent_token, shown.token.encode() + b"\n")
    context, gateway = keep_certificates(paths, shown, shown.certificates)
    if gateway.not_after <= clock.now_us():
        raise Refused("The pilot's certificate is not valid any more: it waited too long for a node.", code="pass-bad")
    return context


class _Told:
    """What Slurm told us by signals, from the first moment on."""

    def __init__(self) -> None:
        self.ended = False
        #: the server knows that the end is near
        self.heard = False
        self._drains = False
        self._drain: Callable[[], None] | None = None
        signal.signal(signal.SIGUSR1, lambda number, frame: self.drain())
        signal.signal(signal.SIGTERM, lambda number, frame: self._note_end())

    def watch(self, drain: Callable[[], None]) -> None:
        """`drain` is run in a thread, once, as soon as the end is near."""
        self._drain = drain
        if self._drains:
            self._begin(drain)

    def drain(self) -> None:
        first, self._drains = not self._drains, True
        if first and self._drain is not None:
            self._begin(self._drain)

    def _note_end(self) -> None:
        self.ended = True

    @staticmethod
    def _begin(drain: Callable[[], None]) -> None:
        threading.Thread(target=drain, name="drain", daemon=True).start()


def _drain(settings: Settings, shown: PilotPass, told: _Told) -> None:
    """Until the server has heard it, or it is too late."""
    say("Slurm takes this machine back soon: nothing new should come.")
    body, pause = PilotDrain("Slurm takes its machine back soon"), threading.Event()
    while not told.ended:
        with contextlib.suppress(SteelyardError), ApiClient(settings.api_url, shown.token) as client:
            with contextlib.suppress(NotFound):
                client.call("POST", f"/v1/pilots/{shown.pilot}/drain", body=body)
            told.heard = True
            return
        pause.wait(RETRY_S)
