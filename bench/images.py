"""What does one package more cost an image, from the command to the image that is ready?

An image with one package of many files, then others upon it with one small package more each. Beside it what uv alone takes to
make an environment with both in it, from its cache. The packages are made here, so that no index and no network is measured.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

from bench.figures import Figure
from bench.installation import Installation, installation
from steelyard.runtime.uv import find_uv

#: as many as NumPy and SciPy have together
FILES = 3000
GOAL_S = 2.0
APP = "import steelyard as sy\nimage = sy.Image.python('3.11').pip_install('stack').pip_install('{name}')\n"


def measure_build(say: Callable[[str], None], quick: bool) -> list[Figure]:
    rounds = 2 if quick else 10
    builds: list[float] = []
    alone: list[float] = []
    with installation(prepare=lambda folder: _make_site(folder, rounds)) as steelyard:
        steelyard.cli("image", "build", "stack")
        for at in range(rounds):
            say(f"round {at + 1}/{rounds}")
            app = steelyard.write_app("more", APP.format(name=f"more{at}"))
            began = time.monotonic()
            steelyard.cli("image", "build", str(app))
            builds.append(time.monotonic() - began)
            alone.append(_build_alone(steelyard, at))
    middle = statistics.median(builds)
    return [
        Figure(
            "image-build",
            f"an image with one package more, upon one of {FILES} files: from the command to ready",
            middle,
            "s",
            f"p50 <= {GOAL_S:g} s",
            middle <= GOAL_S,
            f"{rounds} builds, each as a job; uv alone makes all of it from its cache in {statistics.median(alone):.2f} s",
            {"max": max(builds), "uv_alone": statistics.median(alone)},
        )
    ]


def _build_alone(steelyard: Installation, at: int) -> float:
    """Seconds that uv takes for the same environment, with what it has in its cache."""
    venv = steelyard.folder / f"alone{at}"
    began = time.monotonic()
    install = ["pip", "install", "--quiet", "--compile-bytecode", "--python", str(venv), "stack", f"more{at}"]
    for words in (["venv", "--quiet", str(venv)], install):
        subprocess.run([find_uv(), *words], check=True, env={**steelyard.env, "UV_CACHE_DIR": str(steelyard.folder / "uv-cache")})
    return time.monotonic() - began


def _make_site(folder: Path, rounds: int) -> dict[str, str]:
    """Packages, and a uv.toml that knows no others."""
    wheels = folder / "wheels"
    wheels.mkdir()
    _make_wheel(
        wheels, "stack", {f"stack/part{at}.py": f"VALUE = {at}\n" * 20 for at in range(FILES)} | {"stack/__init__.py": ""}
    )
    for at in range(rounds):
        _make_wheel(wheels, f"more{at}", {f"more{at}.py": "VALUE = 1\n"})
    config = folder / "uv.toml"
    config.write_text(f'no-index = true\nfind-links = ["{wheels}"]\npython-downloads = "never"\n')
    return {"UV_CONFIG_FILE": str(config)}


def _make_wheel(folder: Path, name: str, files: dict[str, str]) -> None:
    info = f"{name}-1.0.dist-info"
    files = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: bench\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in (*files, f"{info}/RECORD"))
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as packed:
        for path, text in {**files, f"{info}/RECORD": record}.items():
            packed.writestr(path, text)
    os.chmod(folder / f"{name}-1.0-py3-none-any.whl", 0o644)
