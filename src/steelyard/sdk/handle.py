"""What does a caller hold of a function? A handle: `f.local(...)` runs it here.

`Function` is a declared function, or one method of a class; `Cls` a declared class, of which `C()` is an `Instance` whose methods
are `Function`s. Both find the deployed function by its name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from steelyard.sdk.declare import marks_of, read_marks
from steelyard.sdk.errors import DeclarationError
from steelyard.sdk.lifecycle import enter_locally

if TYPE_CHECKING:
    from typing import ParamSpec, overload

    from steelyard.sdk.app import App
else:
    from typing import ParamSpec

P = ParamSpec("P")
R = TypeVar("R")
Y = TypeVar("Y")


class Function(Generic[P, R]):
    """A function that can be called elsewhere."""

    def __init__(self, target: Callable[..., Any], app: App, name: str, options: dict[str, Any]) -> None:
        #: the user's function
        self.target = target
        self.app = app
        #: its deployed name without the app's suffix
        self.base_name = name
        #: canonical, as `read_options` gives them
        self.options = options
        #: of an instance of a class: the method
        self.method = ""
        self.__steelyard__ = marks_of(target)
        self.__doc__ = target.__doc__
        self.__name__ = target.__name__
        self.__qualname__ = target.__qualname__
        self.__module__ = target.__module__
        self.__wrapped__ = target

    @property
    def name(self) -> str:
        """Under which it is deployed."""
        return self.base_name + self.app.suffix

    def __repr__(self) -> str:
        return f"<steelyard.Function {self.name}{'.' * bool(self.method)}{self.method}>"

    def local(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run it here and now. A coroutine function gives its coroutine."""
        return self.target(*args, **kwargs)

    __call__ = local

    def __steelyard_app__(self, function: str = "", concurrency: int | None = None) -> Any:
        """What a replica serves; asked by the runner."""
        from steelyard.sdk.serving import make_app

        return make_app(self, function, concurrency)


class GeneratorFunction(Function[P, Iterator[Y]], Generic[P, Y]):
    """A function that yields."""


class Cls:
    """A declared class."""

    def __init__(self, target: type, app: App, name: str, options: dict[str, Any]) -> None:
        self.target = target
        self.app = app
        self.base_name = name
        self.options = options
        self.__steelyard__ = marks_of(target)
        self.__doc__ = target.__doc__
        self.__name__ = target.__name__
        self.__qualname__ = target.__qualname__
        self.__module__ = target.__module__
        if not methods_of(target):
            raise DeclarationError(
                f"{target.__module__}.{target.__qualname__} has no method that can be called: mark some with @sy.method."
            )

    @property
    def name(self) -> str:
        return self.base_name + self.app.suffix

    def __repr__(self) -> str:
        return f"<steelyard.Cls {self.name}>"

    def __call__(self) -> Instance:
        return Instance(self)

    def __steelyard_app__(self, function: str = "", concurrency: int | None = None) -> Any:
        """What a replica serves; asked by the runner."""
        from steelyard.sdk.serving import make_app

        return make_app(self, function, concurrency)


class Instance:
    """`C()`: its marked methods are handles; everything else is that of an instance made here when it is first asked for."""

    def __init__(self, cls: Cls) -> None:
        self._cls = cls
        self._local: Any = None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        cls = self._cls
        target = inspect.getattr_static(cls.target, name, None)
        if target is None or not read_marks(target).called:
            return getattr(self._here(), name)
        bound: Any = Function(target, cls.app, cls.base_name, cls.options)
        bound.method = name
        bound.local = lambda *args, **kwargs: getattr(self._here(), name)(*args, **kwargs)
        return bound

    def _here(self) -> Any:
        if self._local is None:
            self._local = enter_locally(self._cls.target)
        return self._local


def methods_of(target: type) -> dict[str, Callable[..., Any]]:
    """The methods of a class that callers may call, in the order of their definition, bases first."""
    found: dict[str, Callable[..., Any]] = {}
    for cls in reversed(target.__mro__):
        for name, value in vars(cls).items():
            if inspect.isfunction(value) and read_marks(value).called:
                found[name] = value
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
