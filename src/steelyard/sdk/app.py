"""Which functions belong together? `app = sy.App("name")`; what is decorated with it is deployed, served and listed as one app.

Every decorated function or class becomes one Steelyard function named `<app>-<function>`, in small letters and dashes. Declaring
talks to nothing; mistakes raise DeclarationError while the module is imported.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any, TypeVar, overload

from steelyard.sdk.declare import read_marks
from steelyard.sdk.errors import DeclarationError
from steelyard.sdk.handle import Cls, Function, kind_of
from steelyard.sdk.nouns import check_name
from steelyard.sdk.options import read_options

if TYPE_CHECKING:
    from typing import ParamSpec

    from typing_extensions import Unpack, dataclass_transform

    from steelyard.sdk.handle import GeneratorFunction
    from steelyard.sdk.image import Image
    from steelyard.sdk.options import FunctionOptions
    from steelyard.sdk.parameters import parameter

    P = ParamSpec("P")
    R = TypeVar("R")
    Y = TypeVar("Y")
    T = TypeVar("T")

    class _FunctionDecorator:
        @overload
        def __call__(self, target: Callable[P, Coroutine[Any, Any, R]], /) -> Function[P, R]: ...
        @overload
        def __call__(self, target: Callable[P, AsyncIterator[Y]], /) -> GeneratorFunction[P, Y]: ...
        @overload
        def __call__(self, target: Callable[P, Iterator[Y]], /) -> GeneratorFunction[P, Y]: ...
        @overload
        def __call__(self, target: Callable[P, R], /) -> Function[P, R]: ...
        def __call__(self, target: Any, /) -> Any: ...


_F = TypeVar("_F", bound=Callable[..., Any])


class Entrypoint:
    """What `steelyard run FILE.py` runs here. Calling it calls the function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.name = function.__name__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


class App:
    def __init__(self, name: str, *, image: Image | None = None) -> None:
        """`image`: of all its functions that name neither an image nor a `python` of their own."""
        self.name = check_name(name, "an app")
        if image is not None:
            read_options({"image": image}, f"App {name}")
        self.image = image
        #: declared function or class by its name within the app
        self.functions: dict[str, Function[..., Any] | Cls] = {}
        self.entrypoints: dict[str, Entrypoint] = {}
        #: of the deployed names ("-dev"): set by whoever deployed the app so; a replica reads it off its own name
        self.suffix = ""

    def __repr__(self) -> str:
        return f"<steelyard.App {self.name}: {', '.join(self.functions) or 'no functions yet'}>"

    if TYPE_CHECKING:

        @overload
        def function(self, **options: Unpack[FunctionOptions]) -> _FunctionDecorator: ...
        @overload
        def function(self, target: Callable[P, Coroutine[Any, Any, R]], /) -> Function[P, R]: ...
        @overload
        def function(self, target: Callable[P, AsyncIterator[Y]], /) -> GeneratorFunction[P, Y]: ...
        @overload
        def function(self, target: Callable[P, Iterator[Y]], /) -> GeneratorFunction[P, Y]: ...
        @overload
        def function(self, target: Callable[P, R], /) -> Function[P, R]: ...
        def function(self, *_: Any, **__: Any) -> Any: ...

        @dataclass_transform(field_specifiers=(parameter,), kw_only_default=True)
        @overload
        def cls(self, **options: Unpack[FunctionOptions]) -> Callable[[type[T]], type[T]]: ...
        @overload
        def cls(self, target: type[T], /) -> type[T]: ...
        def cls(self, *_: Any, **__: Any) -> Any: ...

    else:

        def function(self, target=None, /, **options):
            """Declare a function of the app; options as in `FunctionOptions`. With or without parentheses."""

            def declare(target):
                if isinstance(target, type):
                    raise DeclarationError(f"{target.__qualname__} is a class: decorate it with @app.cls.")
                if isinstance(target, Function | Cls) or not callable(target):
                    raise DeclarationError(f"@app.function decorates a function of yours, not {target!r}.")
                return self._add(target, kind_of(target), options)

            return declare if target is None else declare(target)

        def cls(self, target=None, /, **options):
            """Declare a class of the app: one instance per replica, whose `@sy.method`s can be called. With or without
            parentheses."""

            def declare(target):
                if not isinstance(target, type):
                    raise DeclarationError(f"@app.cls decorates a class, not {target!r}.")
                return self._add(target, Cls, options)

            return declare if target is None else declare(target)

    def local_entrypoint(self, target: Any = None, /, *, name: str | None = None) -> Any:
        """Declare what `steelyard run` runs on the caller's machine. With or without parentheses."""

        def declare(target: Callable[..., Any]) -> Entrypoint:
            if not callable(target):
                raise DeclarationError(f"@app.local_entrypoint decorates a function, not {target!r}.")
            entrypoint = Entrypoint(target)
            entrypoint.name = name or entrypoint.name
            self.entrypoints[entrypoint.name] = entrypoint
            return entrypoint

        return declare if target is None else declare(target)

    def adopt_suffix(self, base_name: str, deployed_name: str) -> None:
        """In a replica: what its own name says about those of the others."""
        if deployed_name.startswith(base_name):
            self.suffix = deployed_name[len(base_name) :]

    def _add(self, target: Any, kind: Any, options: dict[str, Any]) -> Any:
        where = f"{target.__module__}.{target.__qualname__}"
        short = target.__qualname__.rpartition("<locals>.")[2]
        read = read_options(options, where)
        name = read.pop("name", None) or make_name(self.name, short, where)
        marks = read_marks(target)
        if "concurrency" in read and marks.concurrency not in (None, read["concurrency"]):
            raise DeclarationError(f"{where}: @sy.concurrent({marks.concurrency}) and concurrency={read['concurrency']} differ.")
        for other in self.functions.values():
            if other.base_name == name and _place(other.target) != _place(target):
                raise DeclarationError(
                    f"{where} and {'.'.join(_place(other.target))} would both be deployed as '{name}'. Give one another name=."
                )
        handle = kind(name, target, self, read)
        self.functions[short] = handle
        return handle


def make_name(app: str, function: str, where: str) -> str:
    """`<app>-<function>` as a function's name. DeclarationError when it can't be one."""
    name = f"{app}-{function}".lower().replace("_", "-").replace(".", "-").strip("-")
    try:
        return check_name(name, "a function")
    except DeclarationError:
        raise DeclarationError(
            f"{where} would be deployed as '{name}', which can't be a name (small letters, digits, dashes, at most 63). "
            "Write name='...' in its decorator."
        ) from None


def _place(target: Any) -> tuple[str, str]:
    return target.__module__, target.__qualname__
