"""Is a SQLite that can lose commits refused?"""

from __future__ import annotations

import pytest

from steelyard.errors import Refused
from steelyard.store.driver import check_version


def test_the_floor_is_exact() -> None:
    check_version((3, 51, 3), "pysqlite3")
    check_version((3, 52, 0), "pysqlite3")
    for old in ((3, 51, 2), (3, 40, 1), (2, 99, 99)):
        with pytest.raises(Refused, match=r"3\.51\.3 or newer") as caught:
            check_version(old, "sqlite3")
        assert ".".join(map(str, old)) in caught.value.public
        assert caught.value.code == "sqlite-old"
