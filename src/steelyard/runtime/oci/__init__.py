"""How does an image become a folder that containers run on? `fetch.py` copies it (skopeo) into a node cache, `manifest.py` reads
what it says of itself, `layers.py` what its layers would unpack to, `jail.py` unpacks it (umoci) where it can do no harm,
`store.py` keeps it all and evicts what was not used for longest.

Nothing of an image is trusted: names, sizes, digests and owners are checked or contained. Files lie on disk with ids of a range
that no user has, so that a setuid file of an image means nothing to the machine.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from steelyard.model.image import IDS_MAX

#: ids that files of images have on disk: 0 of an image is the first. No distribution gives these to anybody (systemd's
#: UIDS-GIDS names the range above its own containers unused).
RANGE_FIRST, RANGE_SIZE = 0x7000_0000, IDS_MAX
#: who talks to registries, and owns nothing but what it fetched
FETCH_ID = RANGE_FIRST + RANGE_SIZE


class Limits(msgspec.Struct, frozen=True):
    """What one image may be."""

    #: unpacked, all layers together, files that a later layer removes among them
    bytes_max: int = 64 << 30
    #: files, folders and links of all layers
    entries_max: int = 1_000_000
    #: unpacked bytes per byte of a layer; counts from `RATIO_FROM_BYTES` on
    ratio_max: int = 200
    #: folders inside each other
    depth_max: int = 256
    fetch_s: float = 1800.0
    unpack_s: float = 1800.0


#: told while an image is on its way: bytes that came so far; None: all of it came, and it is unpacked
Tell = Callable[[int | None], None]


def say_nothing(_: int | None) -> None: ...


#: an honest small layer of zeros is no bomb
RATIO_FROM_BYTES = 64 << 20
