"""A page of the documentation, carried out: its files are written as they stand, its commands run in order, and what is printed
must be what the page shows (`…` stands for anything)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from steelyard_cluster import Cluster

DOCS = Path(__file__).resolve().parents[2] / "docs"
_BLOCK = re.compile(r"^```(python|console)\n(.*?)^```$", re.M | re.S)


class Step(NamedTuple):
    command: str
    shown: str


def read_page(text: str) -> Iterator[tuple[str, str] | Step]:
    """Files as (name, content), commands as Step, in the order of the page."""
    for kind, body in _BLOCK.findall(text):
        if kind == "python":
            first, _, content = body.partition("\n")
            assert first.startswith("# file: "), f"a Python block begins with its file's name, not {first!r}"
            yield first.removeprefix("# file: "), content
            continue
        for part in re.split(r"^\$ ", body, flags=re.M)[1:]:
            command, _, shown = part.partition("\n")
            yield Step(command, shown)


def matches(shown: str, printed: str) -> bool:
    pattern = ".*".join(re.escape(" ".join(piece.split())) for piece in shown.split("…"))
    return re.fullmatch(pattern.replace(r"\ ", " "), " ".join(printed.split()), re.S) is not None


def carry_out_page(cluster: Cluster, page: str, more: dict[str, str] | None = None, section: str = "") -> None:
    """In a folder of its own; `more`: variables of its commands; `section`: that one alone, by its heading."""
    folder = cluster.folder / page.removesuffix(".md")
    folder.mkdir(mode=0o755)
    bin_dir = os.path.dirname(sys.executable)
    env = cluster.environ({"GATEWAY": cluster.gateway_url, "PATH": f"{bin_dir}:{os.environ['PATH']}", **(more or {})})
    text = (DOCS / page).read_text()
    if section:
        text = re.split(r"^##+ ", text.partition(f"# {section}\n")[2], maxsplit=1, flags=re.M)[0]
        assert text, f"{page} has no section {section!r}"
    for item in read_page(text):
        if not isinstance(item, Step):
            (folder / item[0]).write_text(item[1])
            continue
        done = subprocess.run(
            ["sh", "-c", item.command], cwd=folder, env=env, capture_output=True, text=True, timeout=300, check=False
        )
        printed = done.stdout + done.stderr
        refused = re.search("^steelyard: ", item.shown, re.M) is not None
        assert (done.returncode != 0) is refused, f"$ {item.command}\nended with {done.returncode}:\n{printed}"
        either = (
            matches(item.shown, done.stdout) or matches(item.shown, printed) or matches(item.shown, done.stderr + done.stdout)
        )
        assert either, f"$ {item.command}\nthe page shows:\n{item.shown}\nprinted:\n{printed}"
