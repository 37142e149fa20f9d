"""What does a caller hold of a function? A handle: `f.local(...)` runs it here, `f.remote(...)` in a replica, `f.map(...)` in
many, `f.spawn(...)` without waiting for it.

`Function` is a function that this program declares or that was deployed (`from_name`), or one method of a class; `Cls` is such a
class, of which `C()` is an `Instance` whose methods are `Function`s. Handles can be arguments and results: they travel as names.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from steelyard.sdk.declare import marks_of, read_marks
from steelyard.sdk.errors import DeclarationError
from steelyard.sdk.look import is_generator
from steelyard.sdk.nouns import check_name
from steelyard.sdk.parameters import Taken, check_method, complete, take_parameters
from steelyard.sdk.verbs import ForEach, Map, Remote, RemoteGenerator, Spawn, Starmap

if TYPE_CHECKING:
    from typing import ParamSpec, overload

    from steelyard.sdk.app import App
    from steelyard.sdk.caller import Target
else:
    from typing import ParamSpec

P = ParamSpec("P")
R = TypeVar("R")
Y = TypeVar("Y")


def run_here(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A batched one takes a single input here too."""
    if read_marks(getattr(function, "__func__", function)).batched is None:
        return function(*args, **kwargs)
    from steelyard.sdk.batching import call_one

    return call_one(function, f"{function.__qualname__}()", args, kwargs)


class _Handle:
    """What functions and classes have in common. `target` and `app` are None for what was only named."""

    target: Any
    app: App | None

    def __init__(self, base_name: str, target: Any = None, app: App | None = None, options: dict[str, Any] | None = None) -> None:
        #: its deployed name without the app's suffix
        self.base_name = base_name
        #: the user's function or class
        self.target = target
        self.app = app
        #: canonical, as `read_options` gives them
        self.options = options or {}
        if target is not None:
            self.__steelyard__ = marks_of(target)
            self.__doc__ = target.__doc__
            self.__name__ = target.__name__
            self.__qualname__ = target.__qualname__
            self.__module__ = target.__module__

    @functools.cached_property
    def width(self) -> int:
        """Inputs that all its replicas together work on; 0 where that is not known."""
        from steelyard.sdk.describe import width_of

        handle: Any = self
        return width_of(handle) if self.target is not None else 0

    @property
    def name(self) -> str:
        """Under which it is deployed."""
        return self.base_name + (self.app.suffix if self.app is not None else "")

    def __steelyard_app__(self, function: str = "", concurrency: int | None = None) -> Any:
        """What a replica serves; asked by the runner."""
        import steelyard.sdk.serving as serving  # `from … import` makes an error that nobody sees, in copied pages

        handle: Any = self
        return serving.make_app(handle, function, concurrency)


class Function(_Handle, Generic[P, R]):
    """A function that can be called elsewhere."""

    #: of a class: the method's name
    method = ""
    #: of a class's instance: its parameters, as far as they were given
    _values: dict[str, Any] | None = None
    #: of a class's instance: gives the bound method that runs here
    _bound: Callable[[], Callable[..., Any]] | None = None

    def __init__(self, base_name: str, target: Any = None, app: App | None = None, options: dict[str, Any] | None = None) -> None:
        super().__init__(base_name, target, app, options)
        #: what is deployed: itself, or the class
        self._whole: _Handle = self
        if target is not None:
            self.__wrapped__ = target

    @classmethod
    def from_name(cls, name: str, function: str | None = None) -> Function[..., Any]:
        """A deployed function by its name, `Function.from_name("app-function")`, or by app and function. Nothing is asked yet."""
        return Function(check_name(name if function is None else f"{name}-{function}".lower().replace("_", "-"), "a function"))

    def __repr__(self) -> str:
        return f"<steelyard.Function {self.name}{'.' * bool(self.method)}{self.method}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _named, (self.name, self.method, self._values)

    def local(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run it here and now. A coroutine function gives its coroutine."""
        if self.target is None:
            raise DeclarationError(f"{self!r} is only known by name here: call it with .remote().")
        return run_here(self.target if self._bound is None else self._bound(), args, kwargs)

    __call__ = local

    @property
    def remote(self) -> Remote[P, R]:
        return Remote(self._target())

    @property
    def remote_gen(self) -> RemoteGenerator[P, Any]:
        return RemoteGenerator(self._target())

    @property
    def spawn(self) -> Spawn[P, R]:
        return Spawn(self._target())

    @property
    def map(self) -> Map[R]:
        return Map(self._target())

    @property
    def starmap(self) -> Starmap[R]:
        return Starmap(self._target())

    @property
    def for_each(self) -> ForEach:
        return ForEach(self._target())

    def _target(self) -> Target:
        from steelyard.sdk.caller import Target

        if self.target is None:
            return Target(self.name, self.method, parameters=self._values)
        options, main, width = self.options, self.target.__module__ == "__main__", self._whole.width
        return Target(self.name, self.method, options.get("retries", 0), options.get("timeout_s"), width, main, self._values)


class GeneratorFunction(Function[P, Iterator[Y]], Generic[P, Y]):
    """A function that yields: calling it gives an iterator that is fed while the replica yields. `map` collects lists."""

    @property
    def remote(self) -> RemoteGenerator[P, Y]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return RemoteGenerator(self._target())

    @property
    def remote_gen(self) -> RemoteGenerator[P, Y]:
        return RemoteGenerator(self._target())

    if TYPE_CHECKING:

        @property
        def map(self) -> Map[list[Y]]: ...  # pyright: ignore[reportIncompatibleMethodOverride]
        @property
        def starmap(self) -> Starmap[list[Y]]: ...  # pyright: ignore[reportIncompatibleMethodOverride]


def kind_of(target: Any) -> type[Function[..., Any]]:
    """Which handle a function of the user's gets."""
    return GeneratorFunction if is_generator(target) else Function


class Cls(_Handle):
    """A class of which every replica has an instance."""

    def __init__(self, base_name: str, target: Any = None, app: App | None = None, options: dict[str, Any] | None = None) -> None:
        super().__init__(base_name, target, app, options)
        self.parameters: dict[str, Taken] = {} if target is None else take_parameters(target)
        if target is not None and not methods_of(target):
            raise DeclarationError(
                f"{target.__module__}.{target.__qualname__} has no method that can be called: mark some with @sy.method."
            )
        for name, function in methods_of(target).items() if target is not None else ():
            if self.parameters:
                check_method(self.parameters, f"{self.__module__}.{self.__qualname__}.{name}", read_marks(function))
            setattr(target, name, _Marked(self, name, function))

    @classmethod
    def from_name(cls, name: str, of: str | None = None) -> Cls:
        """A deployed class by its name, `Cls.from_name("app-model")`, or by app and class. Nothing is asked yet."""
        return Cls(check_name(name if of is None else f"{name}-{of}".lower().replace("_", "-"), "a function"))

    def __repr__(self) -> str:
        return f"<steelyard.Cls {self.name}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return Cls, (self.name,)

    def __call__(self, *args: Any, **values: Any) -> Instance:
        if args:
            raise DeclarationError(f"{self.base_name}: its parameters are given by name, such as size=3.")
        if self.target is not None:
            complete(self.parameters, values, self.base_name)
        return Instance(self, values)

    def handle_of(
        self, name: str, values: dict[str, Any], bound: Callable[[], Callable[..., Any]] | None = None
    ) -> Function[..., Any]:
        """That of a marked method; `bound` gives what its `.local()` runs."""
        target = None if self.target is None else methods_of(self.target)[name]
        handle = kind_of(target)(self.base_name, target, self.app, self.options)
        handle.method = name
        handle._whole = self
        handle._bound = bound
        handle._values = values or None
        return handle


class _Marked:
    """A marked method in the user's class: `self.method` there is a handle, as it is outside of it."""

    def __init__(self, cls: Cls, name: str, function: Callable[..., Any]) -> None:
        self.cls = cls
        self.name = name
        self.function = function
        self.__steelyard__ = marks_of(function)

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        if instance is None:
            return self.function
        values: dict[str, Any] = {}
        for name in self.cls.parameters:
            values[name] = getattr(instance, name)
        return self.cls.handle_of(self.name, values, lambda: self.function.__get__(instance))


class Instance:
    """`C()`: its marked methods are handles; everything else is that of an instance made here when it is first asked for."""

    def __init__(self, cls: Cls, values: dict[str, Any]) -> None:
        self._cls = cls
        self._values = values
        self._local: Any = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Instance, (self._cls, self._values)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        cls = self._cls
        if cls.target is not None and name not in methods_of(cls.target):
            return getattr(self._here(), name)
        return cls.handle_of(name, self._values, lambda: bound_method(self._here(), name))

    def _here(self) -> Any:
        if self._local is None:
            from steelyard.sdk.lifecycle import enter_locally

            self._local = enter_locally(self._cls.target, self._values)
        return self._local


def _named(name: str, method: str, values: dict[str, Any] | None = None) -> Any:
    """How a handle arrives at the other side."""
    return getattr(Instance(Cls(name), values or {}), method) if method else Function(name)


def plain_function(value: Any) -> Callable[..., Any] | None:
    """The function that an attribute of a class is, as it was written; None of everything else."""
    if isinstance(value, _Marked):
        return value.function
    return value if inspect.isfunction(value) else None


def bound_method(instance: Any, name: str) -> Callable[..., Any]:
    """A method of an instance as it was written, no handle."""
    function = plain_function(inspect.getattr_static(type(instance), name))
    assert function is not None, name
    return function.__get__(instance)


def methods_of(target: type) -> dict[str, Callable[..., Any]]:
    """The methods of a class that callers may call, in the order of their definition, bases first."""
    found: dict[str, Callable[..., Any]] = {}
    for cls in reversed(target.__mro__):
        for name, value in vars(cls).items():
            function = plain_function(value)
            if function is not None and read_marks(function).called:
                found[name] = function
            elif name in found:
                del found[name]
    return found


if TYPE_CHECKING:

    class Method(Generic[P, R]):
        """For type checkers: a marked method as it is seen through an instance."""

        @overload
        def __get__(self, instance: None, owner: Any) -> Method[P, R]: ...
        @overload
        def __get__(self, instance: object, owner: Any) -> Function[P, R]: ...
        def __get__(self, instance: object, owner: Any) -> Any: ...

    class GeneratorMethod(Generic[P, Y]):
        @overload
        def __get__(self, instance: None, owner: Any) -> GeneratorMethod[P, Y]: ...
        @overload
        def __get__(self, instance: object, owner: Any) -> GeneratorFunction[P, Y]: ...
        def __get__(self, instance: object, owner: Any) -> Any: ...
