"""What can go wrong between a program and the functions it declares or calls? One tree; user code catches these.

    Error
    ├── DeclarationError     a decorator, option or name that can't be meant so; raised while the module is imported
    ├── PayloadError         an argument or result that can't travel; nothing was executed when it was an argument
    ├── NotReachable         no Steelyard answers, or none is known here
    ├── NotAllowed           the token or key does not fit
    ├── NotDeployed          there is no function, method or call of that name
    ├── StartFailed          no replica could be started; the input was not executed
    ├── Overloaded           too many inputs wait; the input was not executed
    ├── CallTimeout          one input ran longer than the function's `timeout` (also a TimeoutError)
    ├── ReplicaLost          its replica ended while it ran the input; whether it took effect is unknown
    │   └── OutOfMemory      because it needed more memory than it may have
    ├── CallCancelled        somebody cancelled the call
    ├── ResultPending        a `get(timeout=...)` was over first; the call goes on (also a TimeoutError)
    └── RemoteError          an exception of the user's code that can't be brought here as itself

Exceptions of the user's code are raised as themselves, with a `RemoteTraceback` as their cause.
"""

from __future__ import annotations


class Error(Exception):
    """Base of all errors of the SDK."""


class DeclarationError(Error, ValueError):
    pass


class PayloadError(Error, TypeError):
    pass


class NotReachable(Error, ConnectionError):
    pass


class NotAllowed(Error, PermissionError):
    pass


class NotDeployed(Error, LookupError):
    pass


class StartFailed(Error):
    pass


class Overloaded(Error):
    #: seconds after which trying again makes sense
    retry_after_s: float = 1.0


class CallTimeout(Error, TimeoutError):
    pass


class ReplicaLost(Error):
    pass


class OutOfMemory(ReplicaLost):
    pass


class CallCancelled(Error):
    pass


class ResultPending(Error, TimeoutError):
    pass


class RemoteError(Error):
    """`type_name`: the exception's dotted name there; `traceback`: as it was printed there."""

    def __init__(self, text: str, *, type_name: str = "", traceback: str = "") -> None:
        super().__init__(text)
        self.type_name = type_name
        self.traceback = traceback

    def __reduce__(self) -> tuple[object, ...]:
        return _make_remote_error, (str(self), self.type_name, self.traceback)


def _make_remote_error(text: str, type_name: str, traceback: str) -> RemoteError:
    return RemoteError(text, type_name=type_name, traceback=traceback)


class RemoteTraceback(Exception):
    """Cause of an exception that was raised in a replica: its traceback there."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}" if self.args else ""
