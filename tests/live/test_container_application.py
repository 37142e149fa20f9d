"""A real application image, made of Debian's packages, runs with one command each as a job and as a function: as docs/images.md
says it, from a mirror of Debian's."""

from __future__ import annotations

import pytest
from doc_pages import carry_out_page
from steelyard_cluster import Cluster

from debian_repository import NEEDS_DEBIAN

pytestmark = NEEDS_DEBIAN


@pytest.mark.timeout(600)
def test_the_page_is_true(shared: Cluster) -> None:
    carry_out_page(shared, "images.md", section="A whole application")
