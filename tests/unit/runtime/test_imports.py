"""What an environment template imports ahead is read from source text, without running any of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.runtime.runner.imports import find_installed, scan

SOURCE = """
from __future__ import annotations
import json, numpy as np
from pydantic.dataclasses import dataclass
from . import neighbour
from typing import TYPE_CHECKING
try:
    import orjson
except ImportError:
    orjson = None
if TYPE_CHECKING:
    import pandas
else:
    import polars
class Model:
    import attrs
def later():
    import torch
'''
import tensorflow
'''
"""


def write(folder: Path, text: str) -> str:
    path = folder / "app.py"
    path.write_text(text)
    return str(path)


def test_imports_that_run_with_the_module_are_found_and_no_others(tmp_path: Path) -> None:
    found = scan(write(tmp_path, SOURCE))
    assert found == ["__future__", "json", "numpy", "pydantic.dataclasses", "typing", "orjson", "attrs"]


def test_of_loaded_code_all_imports_count_also_those_that_name_a_submodule(tmp_path: Path) -> None:
    found = scan(write(tmp_path, SOURCE), everywhere=True)
    assert {"torch", "pydantic.dataclasses", "pydantic.dataclasses.dataclass"} <= set(found)
    assert "tensorflow" not in found and not [name for name in found if name.startswith(".")]


@pytest.mark.parametrize("text", ["import (", "\0", "(" * 10_000, "import sys\nsys.path.insert(0, 'vendored')\nimport numpy\n"])
def test_what_cannot_be_told_from_the_text_is_left_to_running_it(tmp_path: Path, text: str) -> None:
    assert scan(write(tmp_path, text)) == []


def test_a_missing_file_and_a_huge_one_import_nothing(tmp_path: Path) -> None:
    assert scan(str(tmp_path / "none.py")) == []
    assert scan(write(tmp_path, "import numpy\n" + "#" * (1 << 20))) == []


@given(st.text())
def test_any_text_is_scanned_without_an_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.py"
    path.write_text(text, errors="replace")
    assert isinstance(scan(str(path)), list)


def test_only_what_is_installed_and_not_hidden_by_the_code_is_imported_ahead(tmp_path: Path) -> None:
    names = ["json", "msgspec", "pytest", "steelyard", "no_such_package", "app"]
    (tmp_path / "app.py").touch()
    ours = ["steelyard.sdk", "steelyard.sdk.app", "steelyard.sdk.serving"]
    assert find_installed(names, [str(tmp_path)]) == ["msgspec", "pytest", *ours]
    (tmp_path / "pytest.py").touch()
    (tmp_path / "msgspec").mkdir()
    (tmp_path / "msgspec" / "__init__.py").touch()
    assert find_installed(names, [str(tmp_path)]) == ours
