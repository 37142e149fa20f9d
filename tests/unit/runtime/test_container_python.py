"""Which Python of an image a function runs on, and what is said where there is none that fits."""

from __future__ import annotations

from pathlib import Path

import pytest

from steelyard.errors import Refused
from steelyard.runtime.container_python import find_python


def make(root: Path, *programs: str, **links: str) -> Path:
    for name in programs:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
        path.chmod(0o755)
    for name, target in links.items():
        place = root / name.replace("__", "/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(target)
    return root


def test_the_first_python3_of_its_path_is_taken_before_any_python(tmp_path: Path) -> None:
    root = make(tmp_path, "opt/bin/python", "usr/bin/python3.11", usr__bin__python3="python3.11")
    assert find_python(root, "/opt/bin:/usr/bin", "r") == "/usr/bin/python3"
    assert find_python(root, "/opt/bin", "r") == "/opt/bin/python", "whose version nothing tells before it runs"


def test_an_absolute_link_is_meant_within_the_image(tmp_path: Path) -> None:
    root = make(tmp_path, "usr/lib/python/python3.12", bin__python3="/usr/lib/python/python3.12")
    assert find_python(root, "/bin", "r") == "/bin/python3"


@pytest.mark.parametrize("name", ["python3.8", "python3.9"])
def test_one_that_is_too_old_is_refused_by_its_name_or_its_library(tmp_path: Path, name: str) -> None:
    named = make(tmp_path / "named", f"usr/bin/{name}", usr__bin__python3=name)
    beside = make(tmp_path / "beside", "usr/bin/python3", f"usr/lib/{name}/os.py")
    for root in (named, beside):
        with pytest.raises(Refused, match=r"has Python 3\.\d at /usr/bin/python3.*3\.10 or later") as refusal:
            find_python(root, "/usr/bin", "r")
        assert refusal.value.code == "old-python"


@pytest.mark.parametrize("made", [(), ("usr/bin/perl",)])
def test_without_one_it_is_said_what_is_needed(tmp_path: Path, made: tuple[str, ...]) -> None:
    make(tmp_path, *made, usr__bin__python3="/nowhere")
    with pytest.raises(Refused, match=r"has no python3 in its PATH \(/usr/bin\).*3\.10 or later") as refusal:
        find_python(tmp_path, "/usr/bin", "r")
    assert refusal.value.code == "no-python"
