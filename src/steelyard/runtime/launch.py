"""What runs in a launcher (see launcher.py)? `python -I -S launch.py PARENT NOFILE_SOFT NOFILE_HARD`, its socket on 3.

Each start pays for every page that this process has: they are listed anew by fork and given back by exec. So nothing is imported
but what runs between the two (3 MB in the place of 9), and the packages' own `__init__` are passed over.
"""

from __future__ import annotations

import _socket
import gc
import marshal
import os
import select
import sys

TYPE_CHECKING = False  # `typing` itself is half a megabyte
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

#: a start that takes longer (a slow disk under chdir or exec) is not waited for
EXEC_WAIT_MS = 5
#: of what a launcher is sent; the kernel may refuse less
PACKET_MAX = 1 << 20
SOCK = 3
_FDS_SIZE = 253 * 4
_PR_SET_PDEATHSIG, _SIGKILL = 1, 9


class Fields:
    """A struct of the wire, as far as the child is concerned."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self.__dict__.update(fields)


def make_request(fields: dict[str, Any]) -> Any:
    """Of `msgspec.to_builtins` of a `wire.Spawn`."""
    outputs, rootfs, mounts = fields["outputs"], fields["rootfs"], fields["mounts"]
    if rootfs is not None:
        rootfs = Fields({**rootfs, "devices": tuple(map(Fields, rootfs["devices"]))})
    if mounts is not None:
        mounts = Fields({name: tuple(map(Fields, parts)) for name, parts in mounts.items()})
    return Fields({**fields, "outputs": Fields(outputs), "rootfs": rootfs, "mounts": mounts})


def serve(parent: int, nofile: tuple[int, int]) -> NoReturn:
    """All signals stay blocked here: those that a terminal or a group gets are the spawner's."""
    from steelyard.runtime.runner.fork import SiblingFork
    from steelyard.runtime.spawn_child import observe_inherited, prctl

    prctl(_PR_SET_PDEATHSIG, _SIGKILL)
    if os.getppid() != parent:
        os._exit(0)
    inherited = observe_inherited(nofile)
    os.closerange(SOCK + 1, inherited.stdin)
    os.closerange(inherited.stdin + 1, inherited.open_max)
    spawner, fork = _socket.socket(fileno=SOCK), SiblingFork().fork
    packet = bytearray(PACKET_MAX)
    gc.collect()
    gc.freeze()
    gc.disable()
    while True:
        size, ancillary, _, _ = spawner.recvmsg_into([packet], _socket.CMSG_LEN(_FDS_SIZE))
        if not size:
            os._exit(0)
        fds = [fd for _, _, data in ancillary for fd in memoryview(data).cast("i")]
        _launch(make_request(marshal.loads(memoryview(packet)[:size])), fds, fork, inherited)
        spawner.send(b".")


def _launch(request: Any, fds: list[int], fork: Callable[[], int], inherited: Any) -> None:
    from steelyard.runtime.spawn_child import run_child

    pipe, error_fd, *more = fds
    os.set_inheritable(error_fd, False)  # Python 3.11 receives them without CLOEXEC
    pid = -1
    try:
        pid = fork()
    except OSError as err:
        os.write(error_fd, f"\0fork\0{err.strerror or err}".encode())
    if pid == 0:
        os.write(error_fd, b"%d\0" % os.getpid())
        passed, joins = more[: len(request.fds)], more[len(request.fds) :][: request.cgroups]
        userns = next(iter(more[len(request.fds) + request.cgroups :]), None)
        run_child(request, passed, joins, error_fd, inherited, userns)
    # nothing else is open above them
    os.closerange(error_fd, fds[-1] + 1)
    # Standing still until exec is a third faster than going on: while both run, each write copies the page for the other.
    poll = select.poll()
    poll.register(pipe, 0)  # that it has been closed is told all the same
    poll.poll(EXEC_WAIT_MS)
    os.close(pipe)


def _pass_over_packages(root: str) -> None:
    """Their modules can be imported from here on, without what the packages themselves import."""
    for name in ("steelyard", "steelyard.runtime", "steelyard.runtime.runner"):
        package = sys.modules[name] = type(sys)(name)
        package.__path__ = [os.path.join(root, *name.split("."))]


if __name__ == "__main__":
    try:
        _pass_over_packages(os.path.abspath(f"{__file__}/../../.."))
        serve(int(sys.argv[1]), (int(sys.argv[2]), int(sys.argv[3])))
    finally:
        os._exit(1)
