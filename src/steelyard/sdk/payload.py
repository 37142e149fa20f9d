"""How does a Python value travel between a caller and a replica? `dumps` and `loads`, and what is said when it can't.

By reference first: functions and classes that a module offers by name are named, and the other side imports them. What is defined
in the program that was started (`__main__`) or in a notebook, and functions without a name of their own, go by value
(cloudpickle); except that the file which declares the called function is the same file there, so its classes and functions are
named too.
Large buffers (NumPy arrays, torch tensors through them) are not copied into the pickle: they are segments of their own.

Used in the caller's own process and in sandboxes only: unpickling runs code.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import sys
import traceback
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from steelyard.sdk import culprit
from steelyard.sdk.errors import PayloadError, RemoteError, RemoteTraceback
from steelyard.sdk.frames import PAYLOAD, RAISED, Buffer
from steelyard.sdk.hide import hide, hide_in_error, holds_value

#: smaller buffers are copied into the pickle
BUFFER_MIN = 1 << 16
_MAIN = "__main__"
#: frames of these folders are no news to the user
OURS = (os.path.dirname(os.path.abspath(__file__)),)

#: in a replica: the module of the function that it serves, which callers may know as their `__main__`
home: ModuleType | None = None


def dumps(value: Any, what: str, home_is_main: bool = False) -> list[Buffer]:
    """Segments: the pickle, then the buffers that are not in it. `what` names the value for errors ("an argument of add()").
    `home_is_main`: the function was declared in this `__main__`, so both sides have that file. PayloadError."""
    buffers: list[Buffer] = []

    def keep(buffer: pickle.PickleBuffer) -> bool:
        try:
            raw = buffer.raw()
        except BufferError:
            return True  # not contiguous
        if len(raw) < BUFFER_MIN:
            return True
        buffers.append(raw)
        return False

    try:
        pickled = pickle.dumps(value, 5, buffer_callback=keep)
        if b"__main__" not in pickled:
            return [pickled, *buffers]
    except Exception:
        pass  # what is wrong with it, the careful way says
    buffers.clear()
    stream = io.BytesIO()
    try:
        make_careful_pickler(home_is_main)(stream, 5, buffer_callback=keep).dump(value)
    except Exception as err:
        raise PayloadError(culprit.explain(value, what, err)) from err
    return [stream.getvalue(), *buffers]


def dumps_call(args: tuple[Any, ...], kwargs: dict[str, Any], label: str, home_is_main: bool = False) -> list[Buffer]:
    """The arguments of one input. PayloadError names the one that can't travel."""
    try:
        return dumps((args, kwargs), f"An argument of {label}", home_is_main)
    except PayloadError as err:
        for name, value in (*enumerate(args), *kwargs.items()):
            found = culprit.find(value)
            if found is not None:
                raise PayloadError(culprit.tell(f"Argument {name!r} of {label}", *found)) from err
        raise


def loads(segments: Sequence[Buffer], main_is: str = "") -> Any:
    """Raises whatever unpickling raises: it may import modules and run code of the value's class. `main_is`: the name by which
    the other side knows our `__main__`."""
    if not main_is:
        return pickle.loads(segments[0], buffers=segments[1:])
    return _FromHome(io.BytesIO(segments[0]), main_is, segments[1:]).load()


class _FromHome(pickle.Unpickler):
    """Finds in `__main__` what the other side has in the module of that name."""

    def __init__(self, stream: io.BytesIO, main_is: str, buffers: Sequence[Buffer]) -> None:
        super().__init__(stream, buffers=buffers)
        self._main_is = main_is

    def find_class(self, module: str, name: str) -> Any:
        return super().find_class(_MAIN if module == self._main_is else module, name)


def make_careful_pickler(home_is_main: bool) -> Any:
    """Loaded only when it is needed: 30 ms."""
    import cloudpickle

    class Careful(cloudpickle.Pickler):
        def reducer_override(self, obj: Any) -> Any:
            if home_is_main and getattr(obj, "__module__", None) == _MAIN and _named_in_main(obj):
                return find_at_home, (obj.__qualname__,)
            if isinstance(obj, io.TextIOWrapper) and obj not in (sys.stdout, sys.stderr):
                raise TypeError("cannot pickle an open file")  # cloudpickle would send what is in it
            return super().reducer_override(obj)

    return Careful


def _named_in_main(obj: Any) -> bool:
    name = getattr(obj, "__qualname__", None)
    if not isinstance(name, str) or "<" in name:
        return False
    found: Any = sys.modules.get(_MAIN)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found is obj


def name_of_main() -> str:
    """As a replica names the module of this `__main__`'s file."""
    return os.path.splitext(os.path.basename(getattr(sys.modules.get(_MAIN), "__file__", None) or ""))[0]


def find_at_home(name: str) -> Any:
    """What the caller's `__main__` has under this name is here in the module of the function that is called."""
    found: Any = home
    for part in name.split("."):
        found = getattr(found, part)
    return found


# -- exceptions


def dumps_error(err: BaseException, code: str, skip: tuple[str, ...] = ()) -> list[Buffer]:
    """The two segments of an ERROR frame. `skip`: folders whose frames are left out at the top of the traceback."""
    hide_in_error(err)
    told = {
        "code": code,
        "type": f"{type(err).__module__}.{type(err).__qualname__}".removeprefix("builtins."),
        "text": hide(str(err)),
        "traceback": user_traceback(err, skip),
    }
    pickled = b""
    if code in (RAISED, PAYLOAD) and isinstance(err, Exception):
        try:
            pickled = dumps(err, "the exception")[0]
            if holds_value(pickled):
                raise PayloadError("it holds a secret's value")
            loads([pickled])  # one that can be written and not read is common: its __init__ wants other arguments
        except Exception:
            pickled = b""
    return [json.dumps(told).encode(), pickled]


def user_traceback(err: BaseException, skip: tuple[str, ...] = ()) -> str:
    """The traceback from the first frame on that is in none of the folders `skip`."""
    frames = err.__traceback__
    while frames is not None and skip and frames.tb_frame.f_code.co_filename.startswith(skip):
        frames = frames.tb_next
    return hide("".join(traceback.format_exception(type(err), err, frames)))


def loads_error(told: dict[str, Any], pickled: Buffer, main_is: str = "") -> Exception:
    """The exception itself with the remote traceback as its cause, or a RemoteError."""
    err: Any = None
    if pickled:
        try:
            err = loads([pickled], main_is)
        except Exception:
            err = None
    if not isinstance(err, Exception):
        name, text = told.get("type", "Exception"), told.get("text", "")
        err = RemoteError(f"{name}: {text}" if text else name, type_name=name, traceback=told.get("traceback", ""))
    err.__cause__ = RemoteTraceback(told.get("traceback", ""))
    return err
