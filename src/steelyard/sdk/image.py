"""What does a function need around its code? `image = sy.Image.python("3.11").pip_install("numpy")`: a Python environment, built
once and kept; or a container image by its name, `sy.Image.from_registry("ghcr.io/org/app:1.2")`, or made of Debian's packages.

Every call gives a new image with one step more; nothing is done here and no file is read. Paths are those of whoever deploys,
relative to the folder of the file that declares them. Standard library only.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

from steelyard.sdk.errors import DeclarationError
from steelyard.sdk.nouns import Secret

_VERSION = re.compile(r"3\.\d{1,2}(\.\d{1,3})?", re.ASCII)
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]*(:[a-z0-9-]+)?([=/][A-Za-z0-9.+:~-]+)?", re.ASCII)
_SUITE = re.compile(r"[a-z][a-z0-9-]*", re.ASCII)
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,63})?", re.ASCII)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
Path = str | PurePath


#: of Modal, without a meaning yet or at all: said instead of "no attribute"
_ELSEWHERE = {
    "from_dockerfile": "build it with what you have (docker, buildah), and name the result with from_registry(...)",
    "micromamba": "environments are made by uv: install packages with pip_install",
    "micromamba_install": "environments are made by uv: install packages with pip_install",
    "poetry_install_from_file": "export a requirements file and give it to pip_install(requirements=...)",
    "entrypoint": "write command(...), which takes its place",
    "cmd": "write command(...)",
    "run_function": "write what it does as a command: run('python -c ...')",
    "dockerfile_commands": "write run(...) and copy(...)",
}


def _explain(name: str) -> str:
    if name in _ELSEWHERE:
        return f"Image.{name} has no meaning here: {_ELSEWHERE[name]}."
    return f"'Image' object has no attribute {name!r}"


class _Kind(type):
    """`Image.from_dockerfile(...)` is asked of the class."""

    def __getattr__(cls, name: str) -> Any:
        raise AttributeError(_explain(name))


class Image(metaclass=_Kind):
    """Made by `Image.python(...)`, `Image.from_registry(...)` or `Image.debian(...)`. Equal where the steps are."""

    __slots__ = ("_base", "_steps")

    def __init__(self, base: Mapping[str, Any], steps: tuple[Mapping[str, Any], ...] = ()) -> None:
        self._base, self._steps = base, steps

    @classmethod
    def python(cls, version: str | None = None) -> Image:
        """A Python of the machine, or one that uv brings along: "3.11" or "3.11.9"; None: the version that runs this file."""
        asked = "{}.{}".format(*sys.version_info) if version is None else version
        if not isinstance(asked, str) or not _VERSION.fullmatch(asked):
            raise DeclarationError(f"Image.python({version!r}): write a version such as '3.11', as a text.")
        return cls({"kind": "python", "version": asked})

    @classmethod
    def debian(cls, suite: str, *packages: str | list[str], mirror: str | list[str] = "") -> Image:
        """Debian or Ubuntu of packages alone, made by the machine, and packages that are installed in it:
        `Image.debian("bookworm", "python3", "nginx-light")`. `mirror`: addresses, or lines of a sources.list; without it the
        machine's own for that release, else Debian's. What runs with it runs in a container."""
        if not isinstance(suite, str) or not _SUITE.fullmatch(suite):
            raise DeclarationError(f"Image.debian({suite!r}): write a release such as 'bookworm', as a text.")
        mirrors = [mirror] if isinstance(mirror, str) else list(mirror)
        for each in mirrors:
            if not isinstance(each, str) or (each and not (each.startswith("deb ") or "://" in each)):
                raise DeclarationError(
                    f"Image.debian: {each!r} is no mirror. Write an address, or a line of a sources.list that begins with deb."
                )
        made = cls({"kind": "debian", "suite": suite, "mirrors": [each for each in mirrors if each]})
        return made.apt_install(*packages) if packages else made

    @classmethod
    def from_registry(cls, reference: str, *, secret: Secret | str | None = None) -> Image:
        """A container image: "ghcr.io/org/app:1.2", "docker://python:3.12-slim" (Docker Hub), "oci:PATH[:TAG]" (a folder in the
        OCI image layout) or "docker-archive:PATH" (what `docker save` wrote). What runs with it runs in a container. `secret`:
        one whose USERNAME and PASSWORD are the login at the registry; the function is not told it."""
        if not isinstance(reference, str) or not (":" in reference or "/" in reference):
            raise DeclarationError(
                f"from_registry: {reference!r} does not say from where. Write for example 'docker://python:3.12-slim' or "
                "'ghcr.io/org/app:1.2'."
            )
        login = {} if secret is None else {"secret": (Secret.from_name(secret) if isinstance(secret, str) else secret).name}
        return cls({"kind": "registry", "reference": reference, **login})

    def pip_install(
        self,
        *packages: str | list[str],
        requirements: Path | None = None,
        index_url: str = "",
        extra_index_url: str | list[str] = "",
        find_links: str = "",
        pre: bool = False,
    ) -> Image:
        """Packages, as `pip install` takes them, and those of a requirements file. `find_links`: a folder of the machine or an
        address with wheels."""
        named = _flatten(packages)
        for name in named:
            if not isinstance(name, str) or not name.strip() or name.strip()[0] in "-./":
                raise DeclarationError(
                    f"pip_install: {name!r} is no package. Write for example 'numpy>=2'; files of your own come by copy(...)."
                )
        if not named and requirements is None:
            raise DeclarationError("pip_install names no package, and no requirements=.")
        extra = [extra_index_url] if isinstance(extra_index_url, str) else list(extra_index_url)
        return self._with(
            kind="pip",
            packages=named,
            requirements=_path(requirements) if requirements is not None else "",
            index_url=index_url,
            extra_index_urls=[url for url in extra if url],
            find_links=find_links,
            pre=pre,
        )

    def uv_sync(self, lock: Path = "uv.lock", *, extras: list[str] | None = None, groups: list[str] | None = None) -> Image:
        """What a uv.lock says, with the pyproject.toml beside it; not the project itself, which comes with the code.
        In a container its own pip installs it."""
        return self._with(kind="uv-sync", lock=_path(lock), extras=list(extras or ()), groups=list(groups or ()))

    def apt_install(self, *packages: str | list[str]) -> Image:
        """Packages of Debian or Ubuntu, in a container image that has apt."""
        named = _flatten(packages)
        if not self._contained:
            raise DeclarationError(
                "apt_install: an environment has the system of its machine. Begin with Image.debian(...) or "
                "Image.from_registry(...), or have the machine's admin install it there."
            )
        for name in named:
            if not isinstance(name, str) or not _PACKAGE.fullmatch(name):
                raise DeclarationError(f"apt_install: {name!r} is no package of Debian's.")
        if not named:
            raise DeclarationError("apt_install names no package.")
        return self._with(kind="apt", packages=named)

    def env(self, variables: Mapping[str, str]) -> Image:
        """Variables of later steps and of whatever runs in it. No place for secrets."""
        for name, value in variables.items():
            if not isinstance(name, str) or not isinstance(value, str) or not _VARIABLE.fullmatch(name) or "\0" in value:
                raise DeclarationError(f"env: {name!r}: {value!r} is no variable; name and value are texts.")
        return self._with(kind="env", env=dict(variables))

    def user(self, user: str) -> Image:
        """Whom what runs in a container image runs as, as USER of a Dockerfile: `www-data`, `1000:1000`. Later steps are its
        root's all the same."""
        if not self._contained:
            raise DeclarationError("user: work in an environment runs as whoever submits it. Leave it out.")
        if not isinstance(user, str) or not _USER.fullmatch(user):
            raise DeclarationError(f"user({user!r}): write user or user:group, names of the image or numbers, as a text.")
        return self._with(kind="user", user=user)

    def command(self, *argv: str) -> Image:
        """What a container image runs where nothing else is said, a word each: `command("python3", "/srv/main.py")`."""
        if not self._contained:
            raise DeclarationError("command: say what to run in an environment where it is run. Leave it out.")
        if not argv or not all(isinstance(word, str) and "\0" not in word for word in argv) or not argv[0]:
            raise DeclarationError(f"command{argv!r}: write the program and its words, each as a text.")
        return self._with(kind="command", argv=list(argv))

    def copy(self, local: Path, inside: Path = "") -> Image:
        """A file or folder of yours, at that path of the image's own folder, which modules are imported from and processes find
        in STEELYARD_IMAGE; of a container, at that path. As `cp` does it: a folder's content goes to `inside`; a file too where
        that ends in a slash."""
        place = str(inside)
        if self._contained and not place.startswith("/"):
            raise DeclarationError(f"copy: {place!r} is no place in a container. Write an absolute path.")
        if self._contained:
            place = place[1:]
        if place.startswith("/") or ".." in place.split("/"):
            raise DeclarationError(
                f"copy: {place!r} can't be a place inside. Write a path in the image's own folder, without '..'."
            )
        return self._with(kind="copy", local=_path(local), inside=place)

    def run(self, *commands: str | list[str]) -> Image:
        """Lines of shell, a step each, in the image's own folder, with its Python first in PATH; in a container as its root."""
        image = self
        for line in [line for each in commands for line in ([each] if isinstance(each, str) else each)]:
            if not isinstance(line, str) or not line.strip() or "\0" in line:
                raise DeclarationError(f"run: {line!r} is no command.")
            image = image._with(kind="run", command=line)
        if image is self:
            raise DeclarationError("run names no command.")
        return image

    @contextlib.contextmanager
    def imports(self) -> Iterator[None]:
        """`with image.imports(): import torch`: packages that only the image has. Elsewhere, where the file is only read, what
        can't be imported is passed over."""
        try:
            yield
        except ImportError:
            if os.environ.get("STEELYARD_IMAGE"):
                raise

    # Modal's spellings

    @classmethod
    def debian_slim(cls, python_version: str | None = None) -> Image:
        """Modal's: here the same as `python`."""
        return cls.python(python_version)

    def uv_pip_install(self, *packages: str | list[str], requirements: list[str] | None = None, **options: Any) -> Image:
        image = self.pip_install(*packages, **options) if packages or not requirements else self
        for file in requirements or ():
            image = image.pip_install(requirements=file, **options)
        return image

    def pip_install_from_requirements(self, requirements_txt: Path, **options: Any) -> Image:
        return self.pip_install(requirements=requirements_txt, **options)

    def add_local_dir(self, local_path: Path, remote_path: Path = "", *, copy: bool = True) -> Image:
        del copy  # Modal's: it may add files when a container starts; here they are always a step
        return self.copy(local_path, str(remote_path))

    def add_local_file(self, local_path: Path, remote_path: Path = "", *, copy: bool = True) -> Image:
        del copy
        return self.copy(local_path, str(remote_path) or PurePath(local_path).name)

    def run_commands(self, *commands: str | list[str]) -> Image:
        return self.run(*commands)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(_explain(name))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Image) and self.as_json() == other.as_json()

    def __hash__(self) -> int:
        return hash(repr(self.as_json()))

    def __repr__(self) -> str:
        base = {"python": "python {version}", "debian": "debian {suite}"}.get(self._base["kind"], "{reference}")
        return f"<steelyard.Image {base.format_map(self._base)}, {len(self._steps)} steps>"

    def as_json(self) -> dict[str, Any]:
        """The base and the steps as they were written; files are still named by their paths."""
        return {"base": dict(self._base), "steps": [dict(step) for step in self._steps]}

    @property
    def _contained(self) -> bool:
        return self._base["kind"] != "python"

    def _with(self, **step: Any) -> Image:
        return Image(self._base, (*self._steps, step))


def _flatten(packages: tuple[str | list[str], ...]) -> list[str]:
    return [name for each in packages for name in ([each] if isinstance(each, str) else each)]


def _path(path: Path) -> str:
    if not isinstance(path, str | PurePath) or not str(path) or "\0" in str(path):
        raise DeclarationError(f"{path!r} is no path.")
    return str(path)
