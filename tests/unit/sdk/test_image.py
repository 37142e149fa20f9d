"""An image is a value: each call gives another one, nothing is read, and mistakes are named where they are made."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

import steelyard as sy
from steelyard.sdk.describe import describe
from steelyard.sdk.options import read_options


def kinds(image: sy.Image) -> list[str]:
    return [step["kind"] for step in image.as_json()["steps"]]


def test_each_call_gives_another_image() -> None:
    base = sy.Image.python("3.11")
    more = base.pip_install("numpy", "torch==2.5").uv_sync("uv.lock").env({"A": "b"}).copy("data", "inside").run("make")
    assert kinds(base) == []
    assert kinds(more) == ["pip", "uv-sync", "env", "copy", "run"]
    assert base == sy.Image.python("3.11") and base != more and hash(base) == hash(sy.Image.python("3.11"))


def test_without_a_version_it_is_the_one_that_runs() -> None:
    assert sy.Image.python().as_json()["base"]["version"] == "{}.{}".format(*sys.version_info)


def test_a_container_image_is_named_as_it_was_written() -> None:
    assert sy.Image.from_registry("ghcr.io/a/b", secret="ghcr").as_json()["base"]["secret"] == "ghcr"
    image = sy.Image.from_registry("oci:./layout")
    assert image.as_json() == {"base": {"kind": "registry", "reference": "oci:./layout"}, "steps": []}
    assert "oci:./layout" in repr(image) and "python 3.11" in repr(sy.Image.python("3.11"))


def test_steps_upon_a_container_image_are_those_of_an_environment_and_apts() -> None:
    image = (
        sy.Image.from_registry("docker://debian:12")
        .apt_install("git", ["curl=7.88"])
        .pip_install("x")
        .copy("a", "/srv/a")
        .run("make")
        .user("www-data")
        .command("python3", "/srv/a/main.py")
    )
    assert kinds(image) == ["apt", "pip", "copy", "run", "user", "command"]
    assert image.as_json()["steps"][5]["argv"] == ["python3", "/srv/a/main.py"]
    assert image.as_json()["steps"][0]["packages"] == ["git", "curl=7.88"]
    assert image.as_json()["steps"][2]["inside"] == "srv/a"


def test_modals_spellings_mean_the_same() -> None:
    modal = (
        sy.Image.debian_slim(python_version="3.11")
        .uv_pip_install("numpy")
        .pip_install_from_requirements("requirements.txt")
        .add_local_dir("data", "data")
        .add_local_file("a/model.bin")
        .run_commands("make", "make install")
    )
    ours = (
        sy.Image.python("3.11")
        .pip_install("numpy")
        .pip_install(requirements="requirements.txt")
        .copy("data", "data")
        .copy("a/model.bin", "model.bin")
        .run("make")
        .run("make install")
    )
    assert modal == ours


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: sy.Image.python("three"), "write a version"),
        (lambda: sy.Image.python(3.11), "as a text"),  # type: ignore[arg-type]
        (lambda: sy.Image.from_registry("nginx"), "does not say from where"),
        (lambda: sy.Image.debian("Bookworm"), "a release such as 'bookworm'"),
        (lambda: sy.Image.debian("bookworm", mirror="deb.debian.org"), "no mirror"),
        (lambda: sy.Image.debian("bookworm", "-y"), "no package of Debian's"),
        (lambda: sy.Image.from_registry("docker://nginx").copy("a", "b"), "absolute path"),
        (lambda: sy.Image.from_registry("docker://nginx").apt_install("-y"), "no package of Debian's"),
        (lambda: sy.Image.from_registry("docker://nginx").apt_install(), "names no package"),
        (lambda: sy.Image.python("3.11").apt_install("git"), r"Begin with Image.debian\(...\) or"),
        (lambda: sy.Image.python("3.11").user("web"), "whoever submits"),
        (lambda: sy.Image.python("3.11").command("x"), "where it is run"),
        (lambda: sy.Image.from_registry("docker://nginx").user("a b"), "user:group"),
        (lambda: sy.Image.from_registry("docker://nginx").user(1000), "as a text"),  # type: ignore[arg-type]
        (lambda: sy.Image.from_registry("docker://nginx").command(), "the program and its words"),
        (lambda: sy.Image.from_registry("docker://nginx").command(["a"]), "each as a text"),  # type: ignore[arg-type]
        (lambda: sy.Image.python("3.11").pip_install(), "names no package"),
        (lambda: sy.Image.python("3.11").pip_install("./mine"), "copy"),
        (lambda: sy.Image.python("3.11").env({"A": 1}), "texts"),  # type: ignore[dict-item]
        (lambda: sy.Image.python("3.11").copy("x", "/root"), "place inside"),
        (lambda: sy.Image.python("3.11").copy("x", "../x"), "place inside"),
        (lambda: sy.Image.python("3.11").run(""), "no command"),
        (lambda: sy.App("a", image="numpy"), "App a: image='numpy': it is an image"),  # type: ignore[arg-type]
        (lambda: read_options({"image": sy.Image.python("3.11"), "python": "/usr/bin/python3"}, "f"), "leave out"),
    ],
)
def test_mistakes_are_named(make: Any, text: str) -> None:
    with pytest.raises(sy.DeclarationError, match=text):
        make()


@pytest.mark.parametrize("name", ["from_dockerfile", "micromamba", "entrypoint"])
def test_what_is_not_there_says_what_to_do(name: str) -> None:
    for asked in (sy.Image, sy.Image.python("3.11")):
        with pytest.raises(AttributeError, match=f"{name} has no meaning here: .*[a-z]"):
            getattr(asked, name)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        sy.Image.python("3.11").nonsense  # noqa: B018


def test_a_function_has_its_own_image_or_its_apps() -> None:
    code = """
import steelyard as sy
own, shared = sy.Image.python("3.12"), sy.Image.python("3.11")
app = sy.App("a", image=shared)
@app.function
def one(): ...
@app.function(image=own)
def two(): ...
@app.function(python="/usr/bin/python3")
def three(): ...
"""
    module: Any = type(sys)("declared")
    sys.modules["declared"] = module
    try:
        exec(code, module.__dict__)
        found = {each["fn"]: each["image"] for each in describe(module)["functions"]}
    finally:
        del sys.modules["declared"]
    assert {name: image and image["base"]["version"] for name, image in found.items()} == {
        "one": "3.11", "two": "3.12", "three": None,
    }  # fmt: skip


def test_what_only_the_image_has_is_passed_over_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    image = sy.Image.python("3.11")
    monkeypatch.delenv("STEELYARD_IMAGE", raising=False)
    with image.imports():
        import no_such_package_at_all  # type: ignore[import-not-found]
    monkeypatch.setenv("STEELYARD_IMAGE", "/images/x/files")
    with pytest.raises(ImportError), image.imports():
        import no_such_package_at_all  # noqa: F401


def test_an_image_is_loaded_only_by_who_asks_for_it() -> None:
    code = "import sys, steelyard as sy; sy.App('a'); print('steelyard.sdk.image' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
