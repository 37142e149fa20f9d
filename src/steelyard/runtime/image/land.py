"""The other end of `pack.py`: `python -m steelyard.runtime.image.land IMAGE`, run as the image's owner on a machine that lacks
it.

The packed environment is standard input, whose digest was checked. Each of its layers is put in place by rename, whole or not at
all; environments are made to be moved, and what names the interpreter is set right here. Exit code 1: the last line on stderr
says why.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from steelyard.model.ids import ImageId
from steelyard.runtime.image.layer import MARKER, PYTHONS, VENV, hold_layer, read_layer, remove_tree

_CONFIG = "pyvenv.cfg"


def land(folder: Path, image: ImageId) -> str:
    """Standard input becomes layers of `folder`. Why it can't be used here; "" where it can. Raises OSError and
    CalledProcessError."""
    if read_layer(folder, image) is not None:
        return ""
    with hold_layer(folder, image) as making:
        if read_layer(folder, image) is not None:
            return ""
        subprocess.run(("tar", "-xf", "-", "-C", str(making)), check=True)
        links = [layer / VENV / "bin" / "python" for layer in making.iterdir()]
        asked = next((os.readlink(link) for link in links if link.is_symlink()), "of another layer")
        for python in sorted((making / PYTHONS).glob("*")):
            _place(python, folder / PYTHONS / python.name)
        for layer in sorted(path.parent for path in making.glob(f"*/{MARKER}")):
            if (layer / VENV).is_dir():
                _move_venv(layer / VENV, folder)
            # the one that is asked for comes last: it counts only with the tree that it may have from another
            if layer.name != image:
                _place(layer, folder / layer.name)
        _place(making / image, folder / image)
    if read_layer(folder, image) is not None:
        return ""
    return (
        f"It was made with the interpreter {asked}, which this machine does not have: install the same "
        "Python on the nodes, or build it with a version that the home's machine does not have: that is fetched, and comes along"
    )


def _place(source: Path, target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    if not os.path.lexists(target):
        os.rename(source, target)
    elif (target / MARKER).exists() and read_layer(target.parent, ImageId(target.name)) is None:
        remove_tree(target)
        os.rename(source, target)


def _move_venv(venv: Path, folder: Path) -> None:
    """An interpreter that came along lies in this folder now."""
    python = venv / "bin" / "python"
    head, inside, tail = os.readlink(python).partition(f"/{folder.name}/{PYTHONS}/")
    if not inside:
        return
    mode = python.parent.stat().st_mode
    python.parent.chmod(mode | 0o200)
    python.unlink()
    python.symlink_to(f"{folder}/{PYTHONS}/{tail}")
    python.parent.chmod(mode)
    config = venv / _CONFIG
    text = config.read_text().replace(f"{head}{inside}", f"{folder}/{PYTHONS}/")
    config.unlink()
    config.write_text(text)
    config.chmod(0o444)


def main(argv: Sequence[str]) -> int:
    """STEELYARD_IMAGES names the owner's folder."""
    os.umask(0o022)
    try:
        wrong = land(Path(os.environ["STEELYARD_IMAGES"]), ImageId(argv[0]))
    except (OSError, subprocess.CalledProcessError) as err:
        wrong = f"The image could not be unpacked: {err}"
    if wrong:
        sys.stderr.write(f"{wrong}\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
