"""A package index of a test's own on loopback, with tiny wheels; uv is told of it by the site's uv.toml."""

from __future__ import annotations

import hashlib
import http.server
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path


def make_wheel(folder: Path, name: str, version: str, code: str = "", requires: tuple[str, ...] = ()) -> Path:
    """A package of one module with a `__version__`."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": f"__version__ = {version!r}\n{code}",
        f"{info}/METADATA": "\n".join(
            (
                "Metadata-Version: 2.1",
                f"Name: {name}",
                f"Version: {version}",
                *(f"Requires-Dist: {each}" for each in requires),
                "",
            )
        ),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in (*files, f"{info}/RECORD"))
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as packed:
        for path, text in files.items():
            packed.writestr(path, text)
    wheel.chmod(0o644)
    return wheel


def make_wheels(folder: Path) -> Path:
    """What the tests install."""
    wheels = folder / "wheels"
    wheels.mkdir(mode=0o755)
    make_wheel(wheels, "numpy", "2.0.0")
    make_wheel(wheels, "numpy", "2.1.0")
    make_wheel(wheels, "pandas", "3.0.0", requires=("numpy>=2",))
    make_wheel(wheels, "tiny", "1.0")
    return wheels


def write_site(folder: Path, index: str) -> dict[str, str]:
    """A uv.toml that knows no index but that one; the variables for `up`."""
    config = folder / "uv.toml"
    config.write_text(f'python-downloads = "never"\n[[index]]\nurl = "{index}"\ndefault = true\n')
    config.chmod(0o644)
    return {"UV_CONFIG_FILE": str(config)}


@contextmanager
def served_index(wheels: Path, folder: Path) -> Iterator[str]:
    """The address of a simple index (PEP 503) of the wheels."""
    simple = folder / "simple"
    for wheel in sorted(wheels.glob("*.whl")):
        page = simple / wheel.name.partition("-")[0] / "index.html"
        page.parent.mkdir(parents=True, exist_ok=True)
        (page.parent / wheel.name).write_bytes(wheel.read_bytes())
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        link = f'<a href="{wheel.name}#sha256={digest}">{wheel.name}</a><br>\n'
        page.write_text((page.read_text() if page.exists() else "") + link)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(simple))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()
