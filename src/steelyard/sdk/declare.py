"""What does a decorator say about a function? `@sy.concurrent`, `@sy.batched`, `@sy.endpoint` and so on leave a mark on it.

Decorators here give back what they decorate, so the order in which they stand does not matter and the function stays an ordinary
one. `marks_of` reads them; `app.py` and `serving.py` act on them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from steelyard.sdk.errors import DeclarationError

if TYPE_CHECKING:
    from typing import Concatenate, ParamSpec

    from steelyard.sdk.handle import GeneratorMethod, Method

    P = ParamSpec("P")
    S = TypeVar("S")
    R = TypeVar("R")
    X = TypeVar("X")
    Y = TypeVar("Y")

_F = TypeVar("_F", bound=Callable[..., Any])

_ATTRIBUTE = "__steelyard__"
WebKind = Literal["endpoint", "asgi", "wsgi", "server"]


@dataclass
class Batched:
    max_size: int
    wait_ms: float


@dataclass
class Web:
    kind: WebKind
    #: of an endpoint
    method: str = "POST"
    #: of a server
    port: int = 0
    #: of a server: seconds until its port must be open; None: the function's own
    startup_timeout: float | None = None
    #: of a server: it serves once a GET of this path is answered 2xx; empty: once its port is open
    readiness: str = ""


@dataclass
class Marks:
    concurrency: int | None = None
    batched: Batched | None = None
    web: Web | None = None
    #: a method of a class that can be called from outside
    method: bool = False
    enter: Literal["shared", "replica"] | None = None
    exit: bool = False

    @property
    def called(self) -> bool:
        """Of a method: it is offered to callers."""
        return self.method or self.batched is not None or self.web is not None


def marks_of(target: Any) -> Marks:
    """The marks of a function, a class or a handle; made where there are none. A class's own, not its base's."""
    found = vars(target).get(_ATTRIBUTE)
    if isinstance(found, Marks):
        return found
    if not callable(target) or isinstance(target, staticmethod | classmethod | property):
        raise DeclarationError(f"{target!r} is no function or class of yours.")
    marks = Marks()
    setattr(target, _ATTRIBUTE, marks)
    return marks


def read_marks(target: Any) -> Marks:
    """The marks of anything, without leaving one."""
    found = getattr(target, "__dict__", {}).get(_ATTRIBUTE)
    return found if isinstance(found, Marks) else Marks()


def concurrent(
    count: int | None = None, /, *, max_inputs: int | None = None, target_inputs: int | None = None
) -> Callable[[_F], _F]:
    """One replica works on up to `count` inputs at a time: coroutine functions on its event loop, others in threads.
    `target_inputs` is Modal's and must not be more; our autoscaling has `target_busy`."""
    chosen = max_inputs if count is None else count
    if (count is not None and max_inputs is not None) or not _is_count(chosen, 10_000):
        raise DeclarationError(
            f"@sy.concurrent takes one whole number from 1 to 10000, such as @sy.concurrent(8); not {chosen!r}."
        )
    if target_inputs is not None and not _is_count(target_inputs, chosen or 0):
        raise DeclarationError(f"@sy.concurrent: target_inputs={target_inputs!r} is no whole number from 1 to max_inputs.")

    def mark(target: _F) -> _F:
        marks_of(target).concurrency = chosen
        return target

    return mark


if TYPE_CHECKING:

    class _BatchDecorator:
        @overload
        def __call__(self, target: Callable[[list[X]], list[Y]], /) -> Callable[[X], Y]: ...
        @overload
        def __call__(self, target: Callable[[S, list[X]], list[Y]], /) -> Callable[[S, X], Y]: ...
        @overload
        def __call__(self, target: Callable[..., Any], /) -> Callable[..., Any]: ...
        def __call__(self, target: Any, /) -> Any: ...

    def batched(*, max_size: int = ..., wait_ms: float = ..., max_batch_size: int = ...) -> _BatchDecorator: ...

else:

    def batched(*, max_size=None, wait_ms=None, max_batch_size=None):
        """Inputs that come within `wait_ms` of each other are given to one call as lists, at most `max_size` long; the list it
        returns is dealt back to the callers in order."""
        size = max_batch_size if max_size is None else max_size
        if not _is_count(size, 10_000):
            raise DeclarationError(f"@sy.batched: max_size={size!r} is no whole number from 1 to 10000.")
        wait = 5.0 if wait_ms is None else wait_ms
        if isinstance(wait, bool) or not isinstance(wait, int | float) or not 0 <= wait <= 60_000:
            raise DeclarationError(f"@sy.batched: wait_ms={wait!r} is no number of milliseconds from 0 to 60000.")

        def mark(target):
            marks_of(target).batched = Batched(size, float(wait))
            return target

        return mark


@overload
def endpoint(target: _F, /) -> _F: ...
@overload
def endpoint(*, method: str = "POST", docs: bool = True) -> Callable[[_F], _F]: ...
def endpoint(target: Any = None, /, *, method: str = "POST", docs: bool = True) -> Any:
    """A typed JSON endpoint: arguments from the query or a JSON body by the function's annotations, the result as JSON.
    With or without parentheses."""
    del docs  # Modal's: the description is always there
    verb = method.upper() if isinstance(method, str) else method
    if verb not in ("GET", "POST", "PUT", "PATCH", "DELETE"):
        raise DeclarationError(f"@sy.endpoint: method={method!r} is none of GET, POST, PUT, PATCH, DELETE.")
    return _web(Web("endpoint", method=verb), target)


@overload
def asgi_app(target: _F, /) -> _F: ...
@overload
def asgi_app() -> Callable[[_F], _F]: ...
def asgi_app(target: Any = None, /) -> Any:
    """The function returns an ASGI app, which is served. With or without parentheses."""
    return _web(Web("asgi"), target)


@overload
def wsgi_app(target: _F, /) -> _F: ...
@overload
def wsgi_app() -> Callable[[_F], _F]: ...
def wsgi_app(target: Any = None, /) -> Any:
    """The function returns a WSGI app, which is served. With or without parentheses."""
    return _web(Web("wsgi"), target)


def web_server(port: int, /, *, startup_timeout: float | None = None, readiness: str = "") -> Callable[[_F], _F]:
    """The function starts a server that opens `port` on 127.0.0.1. With `readiness` it gets requests once a GET of that path is
    answered 2xx."""
    if not _is_count(port, 65535):
        raise DeclarationError(f"@sy.web_server: {port!r} is no port from 1 to 65535.")
    if startup_timeout is not None and not 0 < startup_timeout <= 86400:
        raise DeclarationError(f"@sy.web_server: startup_timeout={startup_timeout!r} is no number of seconds up to a day.")
    if not isinstance(readiness, str) or (readiness and not readiness.startswith("/")):
        raise DeclarationError(f"@sy.web_server: readiness={readiness!r} is no path such as '/health'.")
    return _web(Web("server", port=port, startup_timeout=startup_timeout, readiness=readiness), None)


def _web(web: Web, target: Any) -> Any:
    def mark(target: Any) -> Any:
        marks = marks_of(target)
        if marks.web is not None and marks.web.kind != web.kind:
            raise DeclarationError(f"{_name_of(target)} is a web {marks.web.kind} already; it can't be another kind too.")
        marks.web = web
        return target

    return mark if target is None else mark(target)


if TYPE_CHECKING:

    class _MethodDecorator:
        @overload
        def __call__(self, target: Callable[Concatenate[S, P], Coroutine[Any, Any, R]], /) -> Method[P, R]: ...
        @overload
        def __call__(self, target: Callable[Concatenate[S, P], AsyncIterator[Y]], /) -> GeneratorMethod[P, Y]: ...
        @overload
        def __call__(self, target: Callable[Concatenate[S, P], Iterator[Y]], /) -> GeneratorMethod[P, Y]: ...
        @overload
        def __call__(self, target: Callable[Concatenate[S, P], R], /) -> Method[P, R]: ...
        def __call__(self, target: Any, /) -> Any: ...

    @overload
    def method() -> _MethodDecorator: ...
    @overload
    def method(target: Callable[Concatenate[S, P], Coroutine[Any, Any, R]], /) -> Method[P, R]: ...
    @overload
    def method(target: Callable[Concatenate[S, P], AsyncIterator[Y]], /) -> GeneratorMethod[P, Y]: ...
    @overload
    def method(target: Callable[Concatenate[S, P], Iterator[Y]], /) -> GeneratorMethod[P, Y]: ...
    @overload
    def method(target: Callable[Concatenate[S, P], R], /) -> Method[P, R]: ...
    def method(*_: Any) -> Any: ...

else:

    def method(target=None, /):
        """A method of an `@app.cls` class that callers may call. With or without parentheses."""

        def mark(target):
            marks_of(target).method = True
            return target

        return mark if target is None else mark(target)


def _is_count(value: object, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def _name_of(target: Any) -> str:
    return getattr(target, "__qualname__", repr(target))
