"""Which image is meant? Pure: the text of `--image` in, its parts out.

Five forms: `ghcr.io/org/app:1.2` and `docker://nginx:1.27` (a registry; the latter is Docker Hub when no host is named),
`oci:/path[:tag]` (a folder in the OCI image layout), `docker-archive:/path` (what `docker save` writes) and `built:<hex>` (made
here, of steps upon one of these). A bare name such as
`nginx` is refused, because it does not say from where.
"""

from __future__ import annotations

import re
from enum import StrEnum

import msgspec

from steelyard.errors import Refused

REFERENCE_MAX = 1024
#: users and groups that a container has: 0 to one less
IDS_MAX = 65_536
_DIGEST = r"sha256:[0-9a-f]{64}"
_TAG = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
_HOST = r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?(?::[0-9]{1,5})?"
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_NAME = re.compile(rf"(?:(?P<host>{_HOST})/)?(?P<path>{_PART}(?:/{_PART})*)(?::(?P<tag>{_TAG}))?(?:@(?P<digest>{_DIGEST}))?")
_LAYOUT = re.compile(rf"(?P<path>/[^\0:]*)(?::(?P<tag>{_TAG}))?")
_LOOPBACK = re.compile(r"(?:localhost|127(?:\.[0-9]{1,3}){3})(?::[0-9]+)?")


class ImageSource(StrEnum):
    REGISTRY = "registry"
    LAYOUT = "oci"
    ARCHIVE = "docker-archive"
    BUILT = "built"


class ImageReference(msgspec.Struct, frozen=True):
    source: ImageSource
    #: `host/path` of a registry, the hex name of what was built here, else an absolute path on the machine
    name: str
    #: "" in a folder or archive: the only image there
    tag: str = ""
    #: `sha256:<hex>` of what the registry calls the manifest; "" when the tag says it
    digest: str = ""

    @property
    def text(self) -> str:
        """As short as it can be written; the same for all spellings of one image."""
        if self.source is ImageSource.REGISTRY:
            return self.name + (f"@{self.digest}" if self.digest else f":{self.tag}")
        return f"{self.source.value}:{self.name}" + (f":{self.tag}" if self.tag else "")

    @property
    def file(self) -> str:
        """Of a folder or archive: the file that changes when the image does. "" for the others."""
        if self.source in (ImageSource.REGISTRY, ImageSource.BUILT):
            return ""
        return f"{self.name}/index.json" if self.source is ImageSource.LAYOUT else self.name

    @property
    def on_loopback(self) -> bool:
        """A registry of this machine, which as a rule has no certificate."""
        return self.source is ImageSource.REGISTRY and _LOOPBACK.fullmatch(self.name.partition("/")[0]) is not None


def is_reference(text: str) -> bool:
    """Does it say from where an image comes? A name without that is one that was built here (`model/built_image.py`)."""
    return ":" in text or "/" in text


def parse_image(text: str) -> ImageReference:
    """Raises Refused (code bad-image) with what to write instead."""
    if len(text) > REFERENCE_MAX or not text.isprintable():
        raise _refuse(text, f"it is longer than {REFERENCE_MAX} characters or not printable")
    for source in (ImageSource.LAYOUT, ImageSource.ARCHIVE):
        if text.startswith(f"{source.value}:"):
            match = _LAYOUT.fullmatch(text.partition(":")[2])
            if match is None:
                raise _refuse(text, f"write {source.value}:/absolute/path or {source.value}:/absolute/path:TAG")
            return ImageReference(source, match["path"], match["tag"] or "")
    if text.startswith(f"{ImageSource.BUILT.value}:"):
        name = text.partition(":")[2]
        if not re.fullmatch("[0-9a-f]{64}", name, re.ASCII):
            raise _refuse(text, "write built: and the 64 hex digits that `steelyard image build` printed")
        return ImageReference(ImageSource.BUILT, name)
    named, hub = text.removeprefix("docker://"), text.startswith("docker://")
    match = _NAME.fullmatch(named)
    if match is None:
        raise _refuse(text, "write it as registry.host/path:tag, docker://name:tag, oci:/path or docker-archive:/path")
    host, path = match["host"] or "", match["path"]
    if host and not ("." in host or ":" in host or host == "localhost"):  # `library/nginx` is a path, not a host
        host, path = "", f"{host}/{path}"
    if not host:
        if not hub:
            raise _refuse(text, f"it does not say from which registry; Docker Hub's is docker://{text}")
        host, path = "docker.io", path if "/" in path else f"library/{path}"
    digest = match["digest"] or ""
    return ImageReference(ImageSource.REGISTRY, f"{host}/{path}", "" if digest else match["tag"] or "latest", digest)


def _refuse(text: str, why: str) -> Refused:
    shown = text if len(text) <= 80 else f"{text[:77]}..."
    return Refused(f"The image {shown!r} is not understood: {why}. Nothing was started.", code="bad-image")


class UserIds(msgspec.Struct, frozen=True):
    """Whom an image runs as."""

    uid: int = 0
    gid: int = 0
    #: beside `gid`
    groups: tuple[int, ...] = ()
    home: str = "/"


class Image(msgspec.Struct, frozen=True):
    """What an unpacked image says about running it."""

    #: hex SHA-256 of its manifest in the OCI format, which names everything in it
    digest: str
    #: what it was fetched as, the first time
    reference: str
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    env: dict[str, str] = {}
    #: "" means /
    cwd: str = ""
    #: `user[:group]`, names or numbers; "" means root
    user: str = ""
    #: what that means by the image's own /etc/passwd and /etc/group; ids inside of it
    ids: UserIds = UserIds()
    #: TCP ports that it says it listens on
    ports: tuple[int, ...] = ()
    #: hex digests of config and layers, for whoever keeps them
    blobs: tuple[str, ...] = ()
    #: unpacked, and as blobs
    bytes_on_disk: int = 0
    files: int = 0


def find_user(user: str, passwd: str, group: str) -> UserIds | None:
    """`user[:group]` by these files; None when a name is in neither, or an id is one that containers have not."""
    name, _, wanted_group = user.partition(":")
    people = {fields[0]: fields for line in passwd.splitlines() if len(fields := line.split(":")) >= 6}
    groups = {fields[0]: fields for line in group.splitlines() if len(fields := line.split(":")) >= 4}
    name = name or "0"
    person = people.get(name) or next((each for each in people.values() if each[2] == name), None)
    uid = _id(person[2] if person is not None else name)
    gid = _id(person[3]) if person is not None else 0
    if wanted_group:
        gid = _id(groups[wanted_group][2] if wanted_group in groups else wanted_group)
    if uid is None or gid is None:
        return None
    joined = () if wanted_group or person is None else (each for each in groups.values() if person[0] in each[3].split(","))
    more = sorted({found for each in joined if (found := _id(each[2])) is not None and found != gid})
    home = person[5] if person is not None and person[5].startswith("/") else "/"
    return UserIds(uid, gid, tuple(more), home)


def _id(text: str) -> int | None:
    return int(text) if re.fullmatch("[0-9]{1,5}", text, re.ASCII) and int(text) < IDS_MAX else None


def choose_argv(image: Image, argv: tuple[str, ...]) -> tuple[str, ...]:
    """What runs: the image's entry point with these words, or with its own. Raises Refused when nothing says what to run."""
    words = (*image.entrypoint, *(argv or image.command))
    if not words:
        raise Refused(
            f"The image {image.reference} names no command. Say what to run behind --; nothing was started.", code="no-command"
        )
    return words
