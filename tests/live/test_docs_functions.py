"""docs/functions.md and its neighbours are true (`doc_pages.py` says how that is seen)."""

from __future__ import annotations

import pytest
from doc_pages import carry_out_page
from steelyard_cluster import Cluster


@pytest.mark.timeout(300)
@pytest.mark.parametrize("page", ["functions.md", "coming-from-modal.md"])
def test_page_is_true(shared: Cluster, page: str) -> None:
    carry_out_page(shared, page)
