"""How do the parts of an image come to this machine? skopeo copies them, as an id that owns nothing else, into the cache's blobs.

A registry is asked by skopeo itself; a folder or archive of a user is read with that user's rights and handed to skopeo as a
file, so that nobody learns by us what they may not read. Bounded in time and size, and ended when nothing comes any more. Blobs
that are complete are kept whatever happens, so that the next try goes on from there. Blocks: call from a thread.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import stat
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from steelyard.errors import EdgeFailed, NoRoom, Refused, SteelyardError
from steelyard.model.image import ImageReference, ImageSource
from steelyard.runtime.oci import FETCH_ID, Limits, Tell, say_nothing
from steelyard.runtime.oci.manifest import explain_architecture, list_platforms

#: nothing has arrived for so long
STALL_S = 60
_LOOK_S = 1.0
#: the list of what an image is made for is a page long, and its registry has just answered
_PLATFORMS_S = 20.0
#: of prlimit: there is no such program
_NOT_FOUND = 127
#: of the agent's own environment, for whoever is behind a proxy or has authorities of their own
_PASSED = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR")
Ids = tuple[int, int] | None
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: an image for several machines, and this one is none of them
_ONE_OF_SEVERAL = "wrong-architecture"
#: what skopeo says, what it means, what to do; the first that fits
_MEANINGS: tuple[tuple[str, str, str, str], ...] = (
    (r"no image found in (manifest list|image index) for architecture", _ONE_OF_SEVERAL,
     "there is none for this machine's architecture", "Name an image of this architecture."),
    (r"toomanyrequests|status(?: ?code)?:? 429|rate limit", "registry-busy",
     "the registry says that too many requests came from here", "Wait and try again, or log in: those it knows may ask more."),
    (r"unauthorized|authentication required|invalid username/password|status(?: ?code)?:? 401", "image-private",
     "the registry does not give it without a login that it knows",
     "Log in as the user who submits (docker login, podman login, skopeo login), or name a secret: --secret NAME:registry."),
    (r"(?<!permission )denied|forbidden|status(?: ?code)?:? 403", "image-forbidden",
     "the registry does not give it to whoever asks so", "Log in as somebody who may read it, or name a secret of theirs."),
    (r"status(?: ?code)?:? 5\d\d|internal server error|bad gateway|service unavailable|gateway timeout", "registry-broken",
     "the registry answers with an error of its own", "Try again later: what came whole is kept."),
    (r"manifest unknown|name unknown|not found|status(?: ?code)?:? 404|no such image", "no-such-image",
     "there is no such image or tag", "Look at its name and tag."),
    (r"HTTP response to HTTPS client|not look like a TLS handshake", "registry-without-tls",
     "it speaks no TLS, and only a registry of this machine (localhost) may do without", "Give it a certificate."),
    (r"x509|certificate", "registry-untrusted",
     "nobody whom this machine trusts has signed its certificate",
     "Put the authority's certificate into /etc/containers/certs.d/HOST:PORT/ca.crt."),
    (r"no space left", "disk-full", "the disk of the image cache is full", "Free space there, and try again."),
    (r"digest|does not match|checksum", "wrong-digest",
     "what came is not what its digest says", "The registry or something before it is damaged; nothing of it was used."),
    (r"EOF|truncated|short read|connection reset|broken pipe", "image-truncated",
     "it broke off in the middle", "Try again: what came whole is kept."),
    (r"refused|no such host|i/o timeout|unreachable|deadline|dial tcp|TLS", "registry-unreachable",
     "the registry does not answer", "Look at its name and the network, and try again: what came whole is kept."),
)  # fmt: skip

#: skopeo's word, said only when it is asked to tell all, for waiting as long as a registry wants it to
_WAITS = "Too many requests"
#: what trying again may mend
_MAY_PASS = frozenset({"image-truncated", "registry-unreachable", "registry-busy", "registry-broken"})


def fetch(
    reference: ImageReference,
    ids: Ids,
    blobs: Path,
    layout: Path,
    limits: Limits,
    tell: Tell = say_nothing,
    login: bytes | None = None,
) -> bytes:
    """The index.json of a layout with one image in it. `layout`: an empty folder for this, removed by the caller. `ids`: who
    asks. `login`: for the registry, as containers-auth.json(5) says. Raises SteelyardError with what happened."""
    before = _count_bytes((blobs,))
    os.chown(layout, FETCH_ID, FETCH_ID)
    source = f"docker://{reference.text}"
    more: tuple[str, ...] = ("tls-verify=false",) if reference.on_loopback else ()
    if reference.source is not ImageSource.REGISTRY:
        kind = "oci-archive" if reference.source is ImageSource.LAYOUT else "docker-archive"
        staged = _stage(reference, ids, layout, limits)
        source = f"{kind}:{staged}" + (f":{reference.tag}" if reference.tag else "")
    target = layout / "image"
    # in memory, and found by its descriptor: a login is on no disk, no command line and in no environment
    kept = -1 if login is None else _keep_in_memory(login)
    more += ("no-creds",) if login is None else (f"authfile=/proc/self/fd/{kept}",)
    argv = (
        "skopeo", "--debug", "--insecure-policy", "--tmpdir", str(layout), "copy", "--quiet", "--retry-times", "2", "--format",
        # of other compressions (zstd) umoci knows nothing: these layers are compressed anew on their way
        "oci", "--dest-compress-format", "gzip", *(f"--src-{word}" for word in more), "--dest-shared-blob-dir", str(blobs.parent),
        source, f"oci:{target}:image",
    )  # fmt: skip

    def measure() -> int:
        here = _count_bytes((layout, blobs))
        tell(max(0, here - before))
        return here

    try:
        process = _start(argv, (FETCH_ID, FETCH_ID), limits, folder=layout, stdout=subprocess.DEVNULL, keep=kept)
        said = _await(process, reference, limits, measure)
        if process.returncode == _NOT_FOUND:
            raise missing("skopeo")
        if process.returncode:
            failed = _explain(reference, said, process.returncode)
            platforms = _read_platforms(source, more, layout, limits, kept) if failed.code == _ONE_OF_SEVERAL else ()
            raise explain_architecture(reference.text, platforms, os.uname().machine) if platforms else failed
    finally:
        if kept >= 0:
            os.close(kept)
    return (target / "index.json").read_bytes()


def _read_platforms(source: str, more: Sequence[str], layout: Path, limits: Limits, kept: int) -> tuple[str, ...]:
    """What an image that is one of several is made for; empty where that is not told."""
    argv = (
        *("skopeo", "--insecure-policy", "--tmpdir", str(layout), "inspect", "--raw"), *(f"--{word}" for word in more), source
    )  # fmt: skip
    told = layout / "platforms"
    with told.open("xb") as file:
        process = _start(argv, (FETCH_ID, FETCH_ID), limits, folder=layout, stdout=file, keep=kept)
        try:
            process.wait(_PLATFORMS_S)
        except subprocess.TimeoutExpired:
            return ()
        finally:
            _end(process)
            process.communicate()
    return list_platforms(told.read_bytes())


def missing(program: str) -> Refused:
    return Refused(
        f"Containers need {program}, which is not installed here. Nothing was started. Install it: "
        "apt-get install skopeo umoci crun.",
        code="container-tools-missing",
    )


def _keep_in_memory(content: bytes) -> int:
    fd = os.memfd_create("login", os.MFD_CLOEXEC)
    os.write(fd, content)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _stage(reference: ImageReference, ids: Ids, layout: Path, limits: Limits) -> Path:
    staged = layout / "staged.tar"
    if reference.source is ImageSource.LAYOUT:
        argv = ("tar", "-C", reference.name, "-cf", "-", "oci-layout", "index.json", "blobs")
    else:
        argv = ("cat", "--", reference.name)
    with staged.open("xb") as file:
        process = _start(argv, ids, limits, folder=layout, stdout=file)
        said = _await(process, reference, limits, lambda: staged.stat().st_size)
    if process.returncode:
        why = said.strip().splitlines()[-1:] or ["it could not be read"]
        raise Refused(f"The image {reference.text} can't be read: {why[0]}. Nothing was started.", code="image-unreadable")
    os.chown(staged, FETCH_ID, FETCH_ID)
    return staged


def _start(
    argv: Sequence[str], ids: Ids, limits: Limits, *, folder: Path, stdout: IO[bytes] | int, keep: int = -1
) -> subprocess.Popen[bytes]:
    """With that user's rights, a session of its own, and little of our environment. `keep`: a descriptor that it is given."""
    env = {name: os.environ[name] for name in _PASSED if name in os.environ}
    return subprocess.Popen(
        # it ends with us: the next agent may fetch the same
        ("setpriv", "--pdeathsig", "KILL", "prlimit", f"--fsize={limits.bytes_max}", "--core=0", "--", *argv),
        user=ids[0] if ids else None,
        group=ids[1] if ids else None,
        extra_groups=[] if ids else None,
        env={**env, "PATH": _PATH, "HOME": str(folder), "TMPDIR": str(folder), "LANG": "C.UTF-8"},
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        umask=0o022,
        start_new_session=True,
        pass_fds=(keep,) if keep >= 0 else (),
    )


def _await(process: subprocess.Popen[bytes], reference: ImageReference, limits: Limits, measure: Callable[[], int]) -> str:
    """Its stderr. Ends it, with all that it started, when time is over or nothing comes any more."""
    waited = quiet = 0.0
    seen = -1
    try:
        while True:
            try:
                _, stderr = process.communicate(timeout=_LOOK_S)
                return stderr.decode(errors="replace")
            except subprocess.TimeoutExpired:
                waited, quiet = waited + _LOOK_S, quiet + _LOOK_S
            if (now := measure()) != seen:
                seen, quiet = now, 0.0
            if waited >= limits.fetch_s or quiet >= min(STALL_S, limits.fetch_s):
                _end(process)
                _, stderr = process.communicate()
                raise _explain_slow(reference, stderr.decode(errors="replace"), quiet, waited, limits)
    finally:
        if process.returncode is None:
            _end(process)
            process.communicate()


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _explain_slow(reference: ImageReference, said: str, quiet: float, waited: float, limits: Limits) -> SteelyardError:
    if _WAITS in said:
        return _make_error(reference, "registry-busy", f"it was told to wait for {quiet:.0f} s")
    why = f"it took longer than {limits.fetch_s:.0f} s" if waited >= limits.fetch_s else f"nothing came for {quiet:.0f} s"
    return EdgeFailed(
        f"The image {reference.text} could not be fetched: {why}. Nothing was started. Try again: what came whole is kept.",
        code="registry-slow",
    )


def _count_bytes(folders: Sequence[Path]) -> int:
    total = 0
    for folder in folders:
        for path in folder.rglob("*"):
            with contextlib.suppress(OSError):
                told = path.lstat()
                total += told.st_size if stat.S_ISREG(told.st_mode) else 0  # folders have a size, too
    return total


def _explain(reference: ImageReference, told: str, code: int) -> SteelyardError:
    said = "\n".join(line for line in told.splitlines() if "level=debug" not in line).strip()
    words = said.splitlines()[-1] if said else f"skopeo ended with code {code}"
    if match := re.search(r'msg="((?:[^"\\]|\\.)*)"', words):
        words = match[1].replace('\\"', '"')
    about = said.replace(reference.name, "").replace(reference.name.partition("/")[0], "")  # names mean nothing here
    for pattern, name, _, _ in _MEANINGS:
        if re.search(pattern, about, re.IGNORECASE):
            return _make_error(reference, name, words[-300:])
    return EdgeFailed(
        f"The image {reference.text} could not be fetched: {words[-400:]}. Nothing was started.", code="image-unavailable"
    )


def _make_error(reference: ImageReference, name: str, words: str) -> SteelyardError:
    meaning, advice = next((meaning, advice) for _, each, meaning, advice in _MEANINGS if each == name)
    text = f"The image {reference.text} could not be fetched: {meaning} ({words}). Nothing was started. {advice}"
    if name == "disk-full":
        return NoRoom(text, code=name)
    return EdgeFailed(text, code=name) if name in _MAY_PASS else Refused(text, code=name)


def remove_folder(folder: Path) -> None:
    """Of whatever depth and whoever owns it; never follows a link out of it."""
    if folder.exists():
        subprocess.run(("rm", "-rf", "--one-file-system", "--", str(folder)), check=False, capture_output=True)
    shutil.rmtree(folder, ignore_errors=True)
