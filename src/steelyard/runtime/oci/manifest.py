"""What does an image say of itself? Reads manifest and config, which are a stranger's JSON, and checks each against its digest.

Pure but for reading the blobs' folder. Raises Refused with a sentence; never follows a name that is no digest.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from steelyard.errors import Refused
from steelyard.model.image import Image

#: of manifest and config; the largest honest ones are a hundredth of it
JSON_MAX = 4 << 20
LAYERS_MAX = 512
#: that are named; Docker Hub's own images have eight
PLATFORMS_MAX = 12
_HEX = re.compile(r"sha256:([0-9a-f]{64})")
_PORT = re.compile(r"([0-9]{1,5})(?:/tcp)?")
_PLATFORM_NAME = re.compile(r"[a-z0-9_.]+(/[a-z0-9_.]+){1,2}")
_NAME = re.compile(r"[^=\0]+")
#: what `uname -m` says -> what images say
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
T = TypeVar("T")


class Descriptor(msgspec.Struct, rename="camel"):
    digest: str
    size: int
    media_type: str = ""


class Index(msgspec.Struct):
    manifests: list[Descriptor]


class Manifest(msgspec.Struct):
    config: Descriptor
    layers: list[Descriptor]


class _Platform(msgspec.Struct, frozen=True):
    os: str = ""
    architecture: str = ""
    variant: str = ""


class _OfOne(msgspec.Struct):
    platform: _Platform = _Platform()


class _Platforms(msgspec.Struct):
    manifests: list[_OfOne]


class _Run(msgspec.Struct, rename="pascal"):
    user: str | None = None
    env: list[str] | None = None
    entrypoint: list[str] | None = None
    cmd: list[str] | None = None
    working_dir: str | None = None
    exposed_ports: dict[str, object] | None = None


class _Config(msgspec.Struct):
    architecture: str = ""
    os: str = ""
    config: _Run | None = None


class Described(msgspec.Struct, frozen=True):
    """An image whose blobs are there, and not unpacked yet."""

    image: Image
    manifest: Descriptor
    #: hex digests, the lowest first
    layers: tuple[str, ...]


def describe(index: bytes, blobs: Path, reference: str, machine: str) -> Described:
    """`index` is the layout's index.json, of which the only image is meant; `machine` what `uname -m` says."""
    found = _parse(index, Index, "index").manifests
    if len(found) != 1:
        raise Refused(f"There are {len(found)} images in {reference}: say which, with its tag.", code="bad-image")
    manifest = _parse(_read(blobs, found[0].digest, "manifest"), Manifest, "manifest")
    if len(manifest.layers) > LAYERS_MAX:
        raise Refused(f"The image {reference} has more than {LAYERS_MAX} layers.", code="bad-image")
    layers = tuple(_hex(layer.digest) for layer in manifest.layers)
    config = _parse(_read(blobs, manifest.config.digest, "config"), _Config, "config")
    if config.os not in ("", "linux") or config.architecture not in ("", ARCHITECTURES.get(machine, machine)):
        raise explain_architecture(reference, (f"{config.os or 'linux'}/{config.architecture}",), machine)
    run = config.config or _Run()
    image = Image(
        digest=_hex(found[0].digest),
        reference=reference,
        entrypoint=_words(run.entrypoint, reference),
        command=_words(run.cmd, reference),
        env=_variables(run.env or []),
        cwd=run.working_dir or "",
        user=run.user or "",
        ports=tuple(sorted({int(match[1]) for name in run.exposed_ports or {} if (match := _PORT.fullmatch(name))})),
        blobs=tuple(dict.fromkeys((_hex(found[0].digest), _hex(manifest.config.digest), *layers))),
        bytes_on_disk=sum(max(0, each.size) for each in (manifest.config, *manifest.layers)),
    )
    if "\0" in image.cwd or (image.cwd and not image.cwd.startswith("/")) or "\0" in image.user:
        raise Refused(f"The image {reference} names a folder or user that can't be.", code="bad-image")
    return Described(image, found[0], layers)


def list_platforms(index: bytes) -> tuple[str, ...]:
    """What the images of an index, a stranger's, are made for, in its order; empty where it is none. What is made for an unknown
    one is a signature or the like."""
    try:
        found = msgspec.json.decode(index[:JSON_MAX], type=_Platforms).manifests
    except msgspec.MsgspecError:
        return ()
    parts = ((each.platform.os, each.platform.architecture, each.platform.variant) for each in found)
    names = ("/".join(filter(None, each)) for each in parts)
    named = (name for name in names if _PLATFORM_NAME.fullmatch(name) and "unknown" not in name)
    return tuple(dict.fromkeys(named))[:PLATFORMS_MAX]


def explain_architecture(reference: str, platforms: Sequence[str], machine: str) -> Refused:
    """`platforms`: what there is, at least one; `machine`: what `uname -m` says."""
    wanted = ARCHITECTURES.get(machine, machine)
    return Refused(
        f"The image {reference} is made for {', '.join(platforms)}, and this machine is linux/{wanted}. Nothing was started. "
        "Name an image of this architecture.",
        code="wrong-architecture",
    )


def _words(words: list[str] | None, reference: str) -> tuple[str, ...]:
    if any("\0" in word for word in words or ()):
        raise Refused(f"The image {reference} has a command that can't be run.", code="bad-image")
    return tuple(words or ())


def _variables(pairs: list[str]) -> dict[str, str]:
    split = (pair.partition("=") for pair in pairs)
    return {name: value for name, equals, value in split if equals and _NAME.fullmatch(name) and "\0" not in value}


def _hex(digest: str) -> str:
    match = _HEX.fullmatch(digest)
    if match is None:
        raise Refused(f"The image has a part named {digest[:80]!r}, which is no SHA-256 digest.", code="bad-image")
    return match[1]


def _read(blobs: Path, digest: str, what: str) -> bytes:
    name = _hex(digest)
    with (blobs / name).open("rb") as file:
        data = file.read(JSON_MAX + 1)
    if len(data) > JSON_MAX:
        raise Refused(f"The image's {what} is larger than {JSON_MAX >> 20} MiB.", code="bad-image")
    if hashlib.sha256(data).hexdigest() != name:
        raise Refused(f"The image's {what} is not what its digest {digest[:19]}... says.", code="wrong-digest")
    return data


def _parse(data: bytes, kind: type[T], what: str) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.MsgspecError as err:
        raise Refused(f"The image's {what} is not understood: {err}.", code="bad-image") from None
