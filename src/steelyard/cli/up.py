"""`steelyard up` and `steelyard down`.

`up` prepares the home and becomes its supervisor (or, with `--detach`, starts one that outlives the terminal). The home's lock is
what makes it one: `--detach` hands its locked descriptor on, so there is no moment in which two could begin.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import click

from steelyard.cli.ending import end_everything, end_programs
from steelyard.cli.home import UpOptions, find_missing, lock_home, make_run_folder, parse_cluster_address, prepare_home
from steelyard.cli.output import Progress, say
from steelyard.cli.programs import (
    MARK,
    PROGRAM_NAMES,
    SUPERVISOR,
    find_program,
    lives,
    load_record,
    make_mark,
    make_programs,
    open_pidfd,
)
from steelyard.cli.quantities import parse_bytes
from steelyard.cli.readiness import wait_ready
from steelyard.cli.session import find_paths, home_option
from steelyard.cli.supervisor import Supervisor
from steelyard.clock import Clock, SystemClock
from steelyard.config import Paths, Settings, load_settings
from steelyard.errors import EdgeFailed, Refused, SteelyardError

#: a supervisor that was told to stop ends all work first: grace of programs, grace of work, and some
DOWN_S = 40.0

UP_HELP = """Start Steelyard on this machine, or find it running.

The first start makes the home: settings, tokens (mode 0600), folders. Later ones start what is not running, adopt what is, and
change nothing else. Ctrl-C ends Steelyard and its work, as `down` does.

\b
Examples:
  steelyard up --detach
  steelyard up --home /srv/steelyard --port 7700
  steelyard up --host 10.0.0.5 --tls-cert cert.pem --tls-key key.pem
"""


@click.command(help=UP_HELP, short_help="Start Steelyard on this machine, or find it running.")
@click.option("--detach", "-d", is_flag=True, help="Return when everything is ready; Steelyard goes on in the background.")
@home_option
@click.option("--port", type=click.IntRange(1, 65535), help="Port of the API [default: 7600, or the next free one].")
@click.option("--gateway-port", type=click.IntRange(1, 65535), help="Port of the gateway [default: 7680, or the next free one].")
@click.option("--host", help="Address of the API [default: 127.0.0.1]. Any but loopback needs TLS.")
@click.option("--tls-cert", type=click.Path(), help="Certificate of the API (PEM).")
@click.option("--tls-key", type=click.Path(), help="Its private key (PEM).")
@click.option(
    "--work-uid", type=click.IntRange(0), help="Who jobs and functions run as when root starts Steelyard [default: 64000]."
)
@click.option(
    "--scratch-dir", type=click.Path(), help="Where scratch folders of jobs are made [default: on the fastest local disk]."
)
@click.option("--template-memory", help="What templates of functions may hold together [default: a quarter of the memory].")
@click.option("--image-space", help="What images may take on the home's disk [default: a quarter of it].")
@click.option(
    "--cluster-address",
    metavar="HOST[:PORT]",
    help="Where machines of pools reach this one, at PORT and the next one [default: nowhere; port 7690].",
)
def up(
    detach: bool,
    home: Path | None,
    port: int | None,
    gateway_port: int | None,
    host: str | None,
    tls_cert: str | None,
    tls_key: str | None,
    work_uid: int | None,
    scratch_dir: str | None,
    template_memory: str | None,
    image_space: str | None,
    cluster_address: str | None,
) -> None:
    paths, clock = find_paths(home), SystemClock()
    budget = parse_bytes(template_memory) if template_memory else None
    space = parse_bytes(image_space) if image_space else None
    cluster = parse_cluster_address(cluster_address) if cluster_address else None
    options = UpOptions(port, gateway_port, host, tls_cert, tls_key, work_uid, scratch_dir, budget, space, cluster)
    _check_gateway_is_there()
    running = any(find_program(paths, name, clock) is not None for name in ("server", "envoy"))
    settings = prepare_home(paths, options, running)
    lock_fd = lock_home(paths)
    if lock_fd is None:
        _find_running(paths, settings, clock)
        return
    make_run_folder(paths)
    _forget_ended(paths)
    programs = make_programs(paths, prepare_gateway(paths, settings, clock))
    for sentence in find_missing(settings):
        say(f"Note: {sentence}")
    if detach:
        _detach(paths, settings, clock, lock_fd)
        return
    supervisor = Supervisor(paths, programs, clock, say)
    watch = _watch_readiness(paths, settings, clock, lambda: supervisor.stopped_by is not None)
    supervisor.run()
    watch.join(timeout=2.0)
    say("Ending Steelyard and all its work. State and logs stay.")
    end_everything(paths, clock, say)


@click.command(hidden=True, help="The supervisor that `up --detach` starts.")
@home_option
@click.option("--lock-fd", type=int, required=True)
def supervise(home: Path | None, lock_fd: int) -> None:
    # the descriptor came locked from `up --detach`; it must not pass to the programs
    os.set_inheritable(lock_fd, False)
    paths, clock = find_paths(home), SystemClock()
    settings = load_settings(paths)
    if settings is None:
        raise Refused(f"{paths.home} is no Steelyard home. Start with `steelyard up`.", code="home-bad")
    programs = make_programs(paths, prepare_gateway(paths, settings, clock))
    Supervisor(paths, programs, clock, say).run()
    end_everything(paths, clock, say)


DOWN_HELP = """Stop Steelyard and end all its work.

Jobs and functions get SIGTERM, and SIGKILL ten seconds later. State and logs stay, and the next `up` deploys every function
again. Saying it twice does no harm.

\b
Examples:
  steelyard down
  steelyard down --home /srv/steelyard
"""


@click.command(help=DOWN_HELP, short_help="Stop Steelyard and end all its work.")
@home_option
def down(home: Path | None) -> None:
    paths, clock = find_paths(home), SystemClock()
    if load_settings(paths) is None:
        say(f"There is no Steelyard at {paths.home}: nothing to stop.")
        return
    record = find_program(paths, SUPERVISOR, clock)
    pidfd = open_pidfd(record) if record is not None else None
    if record is not None and pidfd is not None:
        say(f"Stopping Steelyard (pid {record.pid})")
        _stop_supervisor(pidfd)
    # whatever it left, and everything where no supervisor lives any more
    lock_fd = lock_home(paths)
    if lock_fd is None:
        raise SteelyardError("Another `up` or `down` is at work on this home. Try again when it is done.", code="busy")
    end_everything(paths, clock, say)
    os.close(lock_fd)
    say(f"Steelyard is down. State and logs stay in {paths.home}.")


def _check_gateway_is_there() -> None:
    """Asked before anything is made."""
    from steelyard.gateway.envoy import envoy_binary

    try:
        envoy_binary()
    except EdgeFailed as err:
        raise Refused(f"{err.public} Nothing was started.", code=err.code) from err


def prepare_gateway(paths: Paths, settings: Settings, clock: Clock) -> list[str]:
    from steelyard.gateway.envoy import Envoy

    if settings.cluster_host is not None:
        from steelyard.control.certificates import GatewayCertificate
        from steelyard.store.authority import Authority

        GatewayCertificate(Authority(paths.authority), paths).renew(clock.now_us())
    envoy = Envoy(paths, settings, clock)
    argv = envoy.argv()
    envoy.prepare()
    return argv


def _find_running(paths: Paths, settings: Settings, clock: Clock) -> None:
    """Another supervisor holds the lock: wait until it is ready, and say where."""
    progress = Progress()
    wait_ready(paths, settings, clock, progress.show, _pause)
    progress.clear()
    record = load_record(paths, SUPERVISOR)
    say(f"Steelyard runs already{f' (pid {record.pid})' if record is not None and lives(record) else ''}.")
    _print_addresses(paths, settings)


def _forget_ended(paths: Paths) -> None:
    """A record of the last run must not be taken for a refusal of this one."""
    for name in PROGRAM_NAMES:
        record = load_record(paths, name)
        if record is not None and not lives(record):
            (paths.programs / f"{name}.json").unlink(missing_ok=True)


def _detach(paths: Paths, settings: Settings, clock: Clock, lock_fd: int) -> None:
    log = os.open(paths.program_logs / "up.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "steelyard", "supervise", "--home", str(paths.home), "--lock-fd", str(lock_fd)],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        cwd="/",
        env={**os.environ, MARK: make_mark(paths, SUPERVISOR)},
        start_new_session=True,
        pass_fds=(lock_fd,),
    )
    os.close(log)
    os.close(lock_fd)

    def pause(seconds: float) -> bool:
        try:
            code = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return False
        raise SteelyardError(
            f"The supervisor ended with code {code}. {paths.program_logs}/up.log says why.", code="supervisor-died"
        )

    progress = Progress()
    try:
        wait_ready(paths, settings, clock, progress.show, pause)
    except Refused:
        # a program would be refused again and again. Work of an earlier start is left alone, and so is the spawner above it
        if _has_work(paths):
            process.kill()
            process.wait()
            end_programs(paths, ("server", "agent", "envoy"), clock, lambda _text: None)
        else:
            process.terminate()
            process.wait()
        raise
    finally:
        progress.clear()
    _print_addresses(paths, settings)


def _has_work(paths: Paths) -> bool:
    from steelyard.host.cgroup import open_cgroups

    cgroups = open_cgroups(paths.tag)
    return any(cgroups.pids(workload) for workload in cgroups.workloads())


def _watch_readiness(paths: Paths, settings: Settings, clock: Clock, stopping: Callable[[], bool]) -> threading.Thread:
    """Say when all is ready while the main thread supervises."""

    def watch() -> None:
        progress = Progress()
        try:
            ready = wait_ready(paths, settings, clock, progress.show, lambda seconds: stopping() or _pause(seconds))
        except SteelyardError as err:
            progress.clear()
            say(f"steelyard: {err.public}")
            if isinstance(err, Refused):
                os.kill(os.getpid(), signal.SIGTERM)
            return
        progress.clear()
        if ready:
            _print_addresses(paths, settings)
            say("Ctrl-C ends Steelyard and its work.")

    thread = threading.Thread(target=watch, name="readiness", daemon=True)
    thread.start()
    return thread


def _pause(seconds: float) -> bool:
    threading.Event().wait(seconds)
    return False


def _print_addresses(paths: Paths, settings: Settings) -> None:
    click.echo(
        f"API      {settings.api_url}\nGateway  {settings.gateway_url}\nHome     {paths.home}\nToken    {paths.admin_token}"
    )


def _stop_supervisor(pidfd: int) -> None:
    import select

    try:
        signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if not poll.poll(int(DOWN_S * 1000)):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            poll.poll(5000)
    except ProcessLookupError:
        pass
    finally:
        os.close(pidfd)
