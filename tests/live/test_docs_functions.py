"""docs/functions.md and its neighbours are true (`doc_pages.py` says how that is seen)."""

from __future__ import annotations

import venv
from pathlib import Path

import pytest
from doc_pages import DOCS, carry_out_page
from steelyard_cluster import Cluster


def make_vllm_environment(folder: Path) -> Path:
    """As the recipe finds vLLM: a package of that name in an interpreter's environment, and its command beside it."""
    if not folder.exists():
        venv.create(folder, symlinks=True)
        [packages] = folder.glob("lib/python*/site-packages")
        (packages / "vllm-0.dist-info").mkdir()
        (packages / "vllm-0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0\n")
        (folder / "bin" / "vllm").write_text("")
    return folder


@pytest.mark.timeout(300)
@pytest.mark.parametrize("page", ["functions.md", "coming-from-modal.md"])
def test_page_is_true(shared: Cluster, page: str) -> None:
    more = {"EXAMPLES": str(DOCS.parent / "examples"), "VLLM_ENV": str(make_vllm_environment(shared.folder / "vllm-env"))}
    carry_out_page(shared, page, more)
