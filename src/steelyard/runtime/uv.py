"""Where is uv, which makes environments? It comes as a package beside us."""

from __future__ import annotations

import os
import shutil
import sysconfig

from steelyard.errors import EdgeFailed


def find_uv() -> str:
    """Absolute path. EdgeFailed when it is not there."""
    beside = os.path.join(sysconfig.get_path("scripts"), "uv")
    found = beside if os.access(beside, os.X_OK) else shutil.which("uv")
    if found is None:
        raise EdgeFailed("the package 'uv' is missing beside Steelyard, and images can't be built; install it", code="no-uv")
    return os.path.abspath(found)
