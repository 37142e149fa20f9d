"""What templates import of ours is compiled before they do."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from steelyard.runtime.lib_dir import make_lib_dir


def test_what_templates_import_is_compiled_once(tmp_path: Path) -> None:
    folder = make_lib_dir(tmp_path / "lib", copied=True) / "steelyard"
    sources = [folder / "__init__.py", folder / "sdk" / "app.py", folder / "runtime" / "runner" / "template.py"]
    compiled = [Path(importlib.util.cache_from_source(str(source))) for source in sources]
    assert all(each.stat().st_mtime >= source.stat().st_mtime for each, source in zip(compiled, sources, strict=True))
    made = compiled[1].stat().st_mtime_ns
    assert make_lib_dir(tmp_path / "lib", copied=True) == folder.parent
    assert compiled[1].stat().st_mtime_ns == made
