"""The builder: `python -m steelyard.runtime.image.build IMAGE`, an ordinary job of whoever owns the image.

Asks the server for the steps, finds the highest one that is there, and makes those above it, each in a folder of its own that is
put in place when it is done. What it prints are the job's logs: a line `[2/3] ...` per step, what uv and commands say below it.
Exit code 1 says that a step failed; the last line on stderr says which, why and what to do. Runs other people's code
(a package's setup.py, commands), so it is given nothing but its own folder and a token for what the image is made of.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import tarfile
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from steelyard.clock import SystemClock
from steelyard.errors import SteelyardError, Unreachable
from steelyard.lifecycle.build_failure import explain_step
from steelyard.lifecycle.image import describe_part, image_environment, name_layers
from steelyard.model.built_image import (
    AptInstall,
    Base,
    Copy,
    ImageSpec,
    PipInstall,
    Run,
    SetCommand,
    SetEnv,
    SetUser,
    Step,
    UvSync,
)
from steelyard.model.ids import ImageId
from steelyard.runtime.image.layer import (
    CACHE,
    FILES,
    PYTHONS,
    VENV,
    Marker,
    finish_layer,
    freeze,
    hold_layer,
    read_layer,
    start_from,
)
from steelyard.runtime.unpack import unpack

#: what a failure is explained by
LINES_KEPT = 60
#: the server may be restarted meanwhile
SERVER_TRIES, SERVER_RETRY_S = 60, 1.0
BRINGS, SCRATCH = "brings", "scratch"
#: modules are imported from there too; relative to site-packages, so that it holds in every copy
_PTH = "../../../../files\n"


class StepFailed(Exception):
    """The text is for whoever wrote the step."""


class Builder:
    """`bundles`: the bytes of every bundle that the steps name. `say` gets lines of progress."""

    def __init__(
        self,
        folder: Path,
        uv: str,
        bundles: Mapping[str, bytes],
        now_us: Callable[[], int],
        say: Callable[[str], None],
        environ: Mapping[str, str],
    ) -> None:
        self._folder, self._uv, self._bundles, self._now_us, self._say = folder, uv, bundles, now_us, say
        self._environ = dict(environ)

    def build(self, spec: ImageSpec) -> Marker:
        """Raises StepFailed. Steps that are done stay, whatever becomes of those above."""
        parts: tuple[Base | Step, ...] = (spec.base, *spec.steps)
        names = name_layers(spec)
        done: Marker | None = None
        start = 0
        for at in reversed(range(len(parts))):
            done = read_layer(self._folder, names[at])
            if done is not None:
                start = at + 1
                break
        for at, part in enumerate(parts):
            what = f"[{at + 1}/{len(parts)}] {_short(describe_part(part))}"
            if at < start:
                self._say(f"{what} (cached)")
                continue
            self._say(what)
            done = self._make(names[at], part, done, f"Step {at + 1} of {len(parts)}, {_short(describe_part(part))}")
        assert done is not None
        return done

    def _make(self, name: ImageId, part: Base | Step, below: Marker | None, what: str) -> Marker:
        try:
            with hold_layer(self._folder, name) as making:
                # another build of the owner may have made it while this one waited
                found = read_layer(self._folder, name)
                if found is not None:
                    return found
                marker = self._fill(making, name, part, below, what)
                finish_layer(self._folder, making, marker)
                return marker
        except OSError as err:
            if err.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StepFailed(explain_step(what, 1, ["No space left on device"])) from err
            raise StepFailed(f"{what}: {err}") from err
        except subprocess.CalledProcessError as err:
            raise StepFailed(f"{what}: the layer below could not be taken over ({err}).") from err

    def _fill(self, making: Path, name: ImageId, part: Base | Step, below: Marker | None, what: str) -> Marker:
        env = dict(below.env) if below is not None else {}
        if isinstance(part, SetEnv):
            assert below is not None
            return msgspec.structs.replace(below, id=name, env=env | part.env, added_bytes=0, built_at=self._now_us())
        for folder in (BRINGS, SCRATCH):
            (making / folder).mkdir()
        if below is not None:
            start_from(self._folder / below.tree, making, writable=isinstance(part, Run))
        self._carry_out(making, part, env, what)
        for folder in (BRINGS, SCRATCH):
            _remove(making / folder)
        size_bytes, added_bytes = freeze(making, None if below is None else self._folder / below.tree)
        return Marker(
            name, name, env, _version(making / VENV), size_bytes, added_bytes, self._now_us(), tuple(_packages(making / VENV))
        )

    def _carry_out(self, making: Path, part: Base | Step, env: Mapping[str, str], what: str) -> None:
        python = str(making / VENV / "bin" / "python")
        brings = making / BRINGS
        if files := getattr(part, "files", ""):
            try:
                unpack(self._bundles[files], brings)
            except (tarfile.TarError, EOFError) as err:
                raise StepFailed(f"{what}: its files could not be unpacked: {err}.") from err
        match part:
            case PipInstall():
                self._run(making, what, (self._uv, "pip", "install", "--python", python, *_pip_words(part, brings)), env)
            case UvSync():
                options = [word for each in part.extras for word in ("--extra", each)]
                options += [word for each in part.groups for word in ("--group", each)]
                argv = (
                    *(self._uv, "sync", "--project", str(brings), "--python", python, "--locked", "--inexact"),
                    *("--no-install-project", "--no-default-groups", "--compile-bytecode", *options),
                )
                self._run(making, what, argv, {**env, "UV_PROJECT_ENVIRONMENT": str(making / VENV)})
            case Copy():
                _merge(brings, making / FILES / part.to)
            case Run():
                self._run(making, what, ("/bin/sh", "-ec", part.command), env, cwd=making / FILES)
            case SetEnv() | AptInstall() | SetUser() | SetCommand():  # all but the first are refused before they come here
                pass
            case _:
                argv = (self._uv, "venv", "--relocatable", "--no-project", "--python", part.version, str(making / VENV))
                self._run(making, what, argv, env, on_failure=self._list_pythons)
                (making / FILES).mkdir()
                for packages in (making / VENV / "lib").glob("python*/site-packages"):
                    (packages / "steelyard_files.pth").write_text(_PTH)

    def _run(
        self,
        making: Path,
        what: str,
        argv: Sequence[str],
        env: Mapping[str, str],
        cwd: Path | None = None,
        on_failure: Callable[[], str] | None = None,
    ) -> None:
        """What it says goes to our stdout as it comes. Raises StepFailed."""
        said: deque[str] = deque(maxlen=LINES_KEPT)
        own = {**self._own_environ(making), **env}
        process = subprocess.Popen(
            argv,
            cwd=cwd or making / SCRATCH,
            env=image_environment(str(making), {}, own["PATH"], own),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                said.append(line.rstrip())
                self._say(f"      {line.rstrip()}")
        code = process.wait()
        if code:
            raise StepFailed(explain_step(what, code, said) + (f" {on_failure()}" if on_failure is not None else ""))

    def _own_environ(self, making: Path) -> dict[str, str]:
        return {
            **self._environ,
            "HOME": str(making / SCRATCH),
            "TMPDIR": str(making / SCRATCH),
            "UV_CACHE_DIR": str(self._folder / CACHE),
            "UV_PYTHON_INSTALL_DIR": str(self._folder / PYTHONS),
            "UV_PYTHON_PREFERENCE": "system",
            "UV_LINK_MODE": "hardlink",
            # as other programs of the machine: sites have authorities of their own
            "UV_SYSTEM_CERTS": "1",
            "UV_NO_PROGRESS": "1",
            "NO_COLOR": "1",
        }

    def _list_pythons(self) -> str:
        argv = (self._uv, "python", "list", "--only-installed", "--output-format", "json")
        done = subprocess.run(
            argv, env=self._own_environ(self._folder), capture_output=True, check=False, stdin=subprocess.DEVNULL
        )
        try:
            found = sorted({str(each["version"]) for each in msgspec.json.decode(done.stdout)}, key=_by_number)
        except (msgspec.MsgspecError, TypeError, KeyError):
            found = []
        return f"There is: {', '.join(found) or 'none'}."


def _pip_words(step: PipInstall, brings: Path) -> list[str]:
    words = ["--compile-bytecode"]
    words += ["--default-index", step.index_url] if step.index_url else []
    for url in step.extra_index_urls:
        words += ["--index", url]
    words += ["--find-links", step.find_links] if step.find_links else []
    words += ["--prerelease", "allow"] if step.pre else []
    words += ["-r", str(brings / "requirements.txt")] if step.files else []
    return [*words, "--", *step.packages]


def _merge(source: Path, target: Path) -> None:
    """Move what is in one folder into another, over what is there. File by file, by rename: a link would be written through."""
    target.mkdir(parents=True, exist_ok=True)
    for entry in sorted(source.iterdir()):
        place = target / entry.name
        if entry.is_dir() and not entry.is_symlink():
            if place.is_symlink() or (place.exists() and not place.is_dir()):
                place.unlink()
            _merge(entry, place)
        else:
            if place.is_dir() and not place.is_symlink():
                _remove(place)
            os.replace(entry, place)


def _remove(folder: Path) -> None:
    subprocess.run(["rm", "-rf", "--", str(folder)], check=True, stdin=subprocess.DEVNULL)


def _version(venv: Path) -> str:
    for line in (venv / "pyvenv.cfg").read_text().splitlines():
        name, _, value = line.partition("=")
        if name.strip() in ("version_info", "version"):
            return value.strip()
    return ""


def _packages(venv: Path) -> list[str]:
    found = (path.name.removesuffix(".dist-info") for path in (venv / "lib").glob("python*/site-packages/*.dist-info"))
    return sorted(" ".join(name.rsplit("-", 1)) for name in found)


def _by_number(version: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdigit() else 0 for part in version.split("."))


def _short(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:97]}..."


def _fetch(image: str) -> tuple[ImageSpec, dict[str, bytes]]:
    """Steps and files, from the server, which may be away for a moment."""
    from steelyard.wire.http import ApiClient
    from steelyard.wire.images import ImageView

    ca_file = os.environ.get("STEELYARD_CA")
    with ApiClient(
        os.environ["STEELYARD_API_URL"], os.environ["STEELYARD_TOKEN"], ca_file=Path(ca_file) if ca_file else None
    ) as client:

        def patiently(path: str) -> bytes:
            for _ in range(SERVER_TRIES):
                try:
                    return client.call("GET", path)
                except Unreachable:
                    threading.Event().wait(SERVER_RETRY_S)
            return client.call("GET", path)

        spec = msgspec.json.decode(patiently(f"/v1/images/{image}"), type=ImageView).spec
        assert spec is not None
        return spec, {sha256: patiently(f"/v1/bundles/{sha256}") for sha256 in sorted(spec.bundles)}


def main(argv: Sequence[str]) -> int:
    """STEELYARD_IMAGES names the owner's folder, STEELYARD_UV the program uv."""
    # told to end, it takes away what it has begun; killed, the next sweep does
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    os.umask(0o022)
    try:
        spec, bundles = _fetch(argv[0])
        # programs of packages and commands get none of ours
        environ = {name: value for name, value in os.environ.items() if not name.startswith("STEELYARD_")}
        folder, uv = Path(os.environ["STEELYARD_IMAGES"]), os.environ["STEELYARD_UV"]
        made = Builder(folder, uv, bundles, SystemClock().now_us, _say, environ).build(spec)
    except (StepFailed, SteelyardError) as err:
        sys.stdout.flush()
        sys.stderr.write(f"{err.public if isinstance(err, SteelyardError) else err}\n")
        return 1
    _say(f"done: Python {made.python}, {len(made.packages)} packages, {made.size_bytes / 1e6:.0f} MB")
    return 0


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
