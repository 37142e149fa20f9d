"""Which things can go wrong, as one tree. A leaf exists only where some caller does something different about it.

    SteelyardError            something failed; exit code 1
    ├── Refused               the request itself can't be carried out as asked; nothing was changed; exit code 2
    │   ├── NotFound          the named object does not exist
    │   ├── Conflict          the object is in a state that forbids this, or a generation has moved on
    │   ├── Unauthorized      no token, or one that does not fit
    │   └── NoRoom            a queue, disk or quota is full; trying again later may work
    ├── Unreachable           a program of ours does not answer; exit code 3
    ├── EdgeFailed            the world (kernel, disk, Envoy, a child process) refused what we attempted on it
    └── StoreDamaged          the store or a state file cannot be trusted; the program stops rather than start empty

"No" is not an error: placement answers with a `Refusal`, a missing process is a state.
HTTP statuses are chosen in `api/` alone.
"""

from __future__ import annotations


class SteelyardError(Exception):
    """Base of all errors. `code` is stable and scripted against, `public` is for the caller, `detail` for logs only."""

    code = "failed"
    exit_code = 1

    def __init__(self, public: str, *, code: str | None = None, detail: str = "") -> None:
        super().__init__(public)
        self.public = public
        self.detail = detail
        if code is not None:
            self.code = code


class Refused(SteelyardError):
    code = "refused"
    exit_code = 2


class NotFound(Refused):
    code = "not-found"


class Conflict(Refused):
    code = "conflict"


class Unauthorized(Refused):
    code = "unauthorized"


class NoRoom(Refused):
    code = "no-room"


class Unreachable(SteelyardError):
    code = "unreachable"
    exit_code = 3


class EdgeFailed(SteelyardError):
    code = "edge-failed"


class StoreDamaged(SteelyardError):
    code = "store-damaged"
    exit_code = 2
