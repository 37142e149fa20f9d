"""What a module declares, and how it is told to the command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

import steelyard as sy
from steelyard.sdk.describe import describe
from steelyard.sdk.handle import Cls, Function

SHOP = """
from __future__ import annotations
import asyncio
import steelyard as sy

app = sy.App("shop")

@app.function(memory="1GB", max_replicas=3, schedule=sy.Every(minutes=5))
@sy.concurrent(4)
def add_up(x: int, *rest: int, scale: float = 1.5, where=object, **more) -> float:
    '''Adds.

    Much more.'''
    return (x + sum(rest)) * scale

@sy.concurrent(2)
@app.function
async def later(x): return x

@app.function(name="other-name")
def numbers(n: int):
    yield from range(n)

@app.cls(gpu="1")
class Model:
    @sy.enter
    async def connect(self): self.steps.append("connect")
    @sy.enter(shared=True)
    def load(self): self.steps = ["load"]
    @sy.exit
    def leave(self): self.steps.append("leave")
    @sy.method()
    def predict(self, x: int) -> int: return x + len(self.steps)
    @sy.batched(max_size=16, wait_ms=3)
    def many(self, xs: list[int]) -> list[int]: return xs
    @sy.endpoint(method="get")
    def web(self, q: str = "a"): return q
    @sy.method
    def predict_both(self, x: int) -> list[int]: return [self.predict(x), self.predict.local(x), self.many.local(x)]
    def inner(self): return "inner"

@app.function
@sy.web_server(8000, startup_timeout=90, readiness="/health")
def served(): ...

@app.local_entrypoint
def main(n: int = 3): return n
"""


@pytest.fixture
def load() -> Any:
    """A module from its text."""
    made: list[str] = []

    def make(text: str, name: str = "shop_under_test") -> ModuleType:
        module = ModuleType(name)
        module.__file__ = f"/code/{name}.py"
        sys.modules[name] = module
        made.append(name)
        exec(compile(text, module.__file__, "exec"), vars(module))
        return module

    yield make
    for name in made:
        sys.modules.pop(name, None)


Load = Callable[..., ModuleType]


def test_an_app_is_told_as_plain_json(load: Load) -> None:
    told = describe(load(SHOP))
    assert json.loads(json.dumps(told)) == told
    functions = {function["name"]: function for function in told["functions"]}
    assert list(functions) == ["shop-add-up", "shop-later", "other-name", "shop-model", "shop-served"]
    add_up = functions["shop-add-up"]
    assert add_up["options"] == {"memory_bytes": 10**9, "replicas_max": 3, "concurrency": 4}
    assert (add_up["schedule"], add_up["doc"], add_up["attr"]) == ({"every_s": 300.0}, "Adds.", "add_up")
    assert add_up["file"] == "/code/shop_under_test.py"
    assert add_up["methods"][0]["parameters"] == [
        {"name": "x", "kind": "positional", "annotation": "int", "required": True, "default": None},
        {"name": "rest", "kind": "args", "annotation": "int", "required": False, "default": None},
        {"name": "scale", "kind": "keyword", "annotation": "float", "required": False, "default": 1.5},
        {"name": "where", "kind": "keyword", "annotation": "", "required": False, "default": "<class 'object'>"},
        {"name": "more", "kind": "kwargs", "annotation": "", "required": False, "default": None},
    ]
    assert functions["shop-later"]["options"]["concurrency"] == 2
    assert functions["other-name"]["methods"][0]["generator"] is True
    model = functions["shop-model"]
    assert (model["interface"], model["options"]["concurrency"]) == ("http", 16)
    assert [(method["name"], method["kind"], method["batched"]) for method in model["methods"]] == [
        ("predict", "call", False),
        ("many", "call", True),
        ("web", "endpoint", False),
        ("predict_both", "call", False),
    ]
    assert [parameter["name"] for parameter in model["methods"][0]["parameters"]] == ["x"]
    assert (functions["shop-served"]["interface"], functions["shop-served"]["port"]) == ("web_server", 8000)
    assert functions["shop-served"]["options"]["startup_deadline_s"] == 90
    assert functions["shop-served"]["options"]["readiness"] == "/health"
    assert told["entrypoints"] == [
        {
            "name": "main",
            "attr": "main",
            "doc": "",
            "parameters": [{"name": "n", "kind": "positional", "annotation": "int", "required": False, "default": 3}],
        }
    ]


def test_functions_run_here_when_asked_to(load: Load) -> None:
    module = load(SHOP)
    assert module.add_up.local(1, 2, scale=2.0) == module.add_up(1, 2, scale=2.0) == 6.0
    assert list(module.numbers.local(3)) == [0, 1, 2]
    model = module.Model()
    assert model.predict.local(1) == model.predict(1) == 3  # load, then connect, whatever order they stand in
    assert model.predict_both(1) == [3, 3, 1]  # inside the class a method is a handle too
    assert (model.steps, model.inner()) == (["load", "connect"], "inner")
    assert module.main() == 3
    with pytest.raises(AttributeError):
        _ = model.nothing


def test_names_follow_the_app_and_its_suffix(load: Load) -> None:
    module = load(SHOP)
    assert isinstance(module.add_up, Function) and isinstance(module.Model, Cls)
    module.app.suffix = "-dev"
    assert (module.add_up.name, module.Model().predict.name) == ("shop-add-up-dev", "shop-model-dev")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("app = sy.App('Big')", "can't be the name of an app"),
        ("@app.function\nclass C: ...", "decorate it with @app.cls"),
        ("@app.cls\ndef f(): ...", "decorates a class"),
        ("@app.cls\nclass C:\n  def f(self): ...", "no method that can be called"),
        ("@app.function(name='x')\ndef f(): ...\n@app.function(name='x')\ndef g(): ...", "would both be deployed as 'x'"),
        ("@app.function\ndef f_(): ...\n@app.function\ndef f(): ...", "would both be deployed as 'a-f'"),
        (f"@app.function\ndef {'f' * 70}(): ...", "Write name='...'"),
        ("@app.function(concurrency=2)\n@sy.concurrent(3)\ndef f(): ...", "differ"),
        ("@sy.asgi_app\n@sy.endpoint\ndef f(): ...", "can't be another kind too"),
        ("@sy.concurrent(0)\ndef f(): ...", "from 1 to 10000"),
        ("@sy.concurrent\ndef f(): ...", "from 1 to 10000"),
        ("@sy.batched(max_size=0, wait_ms=1)\ndef f(): ...", "max_size=0"),
        ("@sy.batched(max_size=2, wait_ms=-1)\ndef f(): ...", "wait_ms=-1"),
        ("@sy.endpoint(method='LOOK')\ndef f(): ...", "none of GET"),
        ("@sy.web_server(0)\ndef f(): ...", "no port"),
        ("@sy.web_server(8000, readiness='health')\ndef f(): ...", "no path"),
    ],
)
def test_declarations_that_cannot_be_meant_are_refused_at_import(load: Load, text: str, words: str) -> None:
    with pytest.raises(sy.DeclarationError) as caught:
        load(f"import steelyard as sy\napp = sy.App('a')\n{text}\n")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("other = sy.App('b')", "several apps: a, b"),
        ("del app", "declares no app"),
        ("def make():\n  @app.function\n  def f(): ...\nmake()", "at the top level of the file"),
        ("@app.cls\nclass C:\n  @sy.asgi_app\n  def a(self): ...\n  @sy.endpoint\n  def b(self): ...", "several web apps"),
    ],
)
def test_apps_that_cannot_be_deployed_say_why(load: Load, text: str, words: str) -> None:
    module = load(f"import steelyard as sy\napp = sy.App('a')\n{text}\n")
    with pytest.raises(sy.DeclarationError) as caught:
        describe(module)
    assert words in str(caught.value)


def test_the_same_function_may_be_declared_again(load: Load) -> None:
    module = load(
        "import steelyard as sy\napp = sy.App('a')\n@app.function\ndef f(): return 1\n@app.function\ndef f(): return 2\n"
    )
    assert describe(module)["functions"][0]["attr"] == "f"
    assert module.f() == 2


def test_methods_come_from_bases_and_may_be_taken_back(load: Load) -> None:
    module = load("""
import steelyard as sy
app = sy.App("a")
class Base:
    @sy.method
    def one(self): return 1
    @sy.method
    def two(self): return 2
    @sy.enter(shared=True)
    def load(self): self.loaded = "base"
@app.cls
class C(Base):
    two = None
    @sy.method
    def three(self): return self.loaded
    def load(self): self.loaded = "mine, and not by itself"
""")
    assert [method["name"] for method in describe(module)["functions"][0]["methods"]] == ["one", "three"]
    with pytest.raises(AttributeError):
        module.C().three.local()


def test_a_class_that_needs_arguments_is_refused_before_anything_is_deployed(load: Callable[[str], Any]) -> None:
    module = load(
        "import steelyard as sy\napp = sy.App('a')\n@app.cls()\nclass Model:\n    def __init__(self, size): ...\n"
        "    @sy.method\n    def one(self): ...\n"
    )
    with pytest.raises(sy.DeclarationError, match=r"Model can't be made without arguments"):
        describe(module)
    with pytest.raises(sy.DeclarationError, match=r"a-model has no parameter 'size'. In the class, write"):
        module.Model(size=3)
