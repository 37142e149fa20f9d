"""A small Debian for tests, on loopback: packages of the machine's own programs, so that nothing is fetched from elsewhere. It
has what `Image.debian` asks for (dpkg, apt and a shell), a Python with pip, and packages that tests install."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import shutil
import subprocess
import tarfile
import threading
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from oci_images import LACKING, busybox_entries, entry, find_linked, folder, link, make_tar, python_entries

SUITE = "testing-tiny"
#: what dpkg and packages call; busybox has them, but for tar, which dpkg asks for more
APPLETS = "rm cp mv mkdir rmdir ln chmod chown cat ls echo sed grep sort touch env diff start-stop-daemon mktemp find id true wc"
PROGRAMS = ("tar", "dpkg", "dpkg-deb", "dpkg-split", "dpkg-query", "dpkg-trigger", "ldconfig")
APT = ("apt-get", "apt-cache", "apt-config", "apt-mark", "/usr/lib/apt/methods/http", "/usr/lib/apt/methods/store")
_PIP = [*Path("/usr/share/python-wheels").glob("pip-*.whl")]
_MISSING = [
    *LACKING,
    *(name for name in ("mmdebstrap", *PROGRAMS, *APT) if shutil.which(name) is None),
    *([] if _PIP else ["python3-venv"]),
]
NEEDS_DEBIAN = pytest.mark.skipif(
    bool(_MISSING), reason=f"NOT VERIFIED without {', '.join(_MISSING)}: images of Debian's packages"
)


class Repository:
    """Made in `place`, which is served."""

    def __init__(self, place: Path) -> None:
        self._folder, self._index = place, ""
        self._owned: set[Path] = set()
        self.address = ""
        #: files of the packages that every system has, and of Python's
        self.entries: list[tuple[tarfile.TarInfo, bytes]] = []
        self.python: list[tuple[tarfile.TarInfo, bytes]] = []

    @property
    def mirror(self) -> str:
        """As a line of a sources.list; it is signed by nobody."""
        return f"deb [trusted=yes] {self.address} {SUITE} main"

    def add(self, name: str, root: Path, **fields: str) -> None:
        """A package of what is below `root`, but for files that another one has already."""
        for path in sorted(root.rglob("*")):
            place = path.relative_to(root)
            if place in self._owned:
                path.unlink()
            elif path.is_symlink() or not path.is_dir():
                self._owned.add(place)
        control = {"Package": name, "Version": "1.0", "Architecture": "all", "Maintainer": "Tests <t@example.org>", **fields}
        control = {key.replace("_", "-"): value for key, value in control.items()} | {"Description": name}
        text = "".join(f"{key}: {value}\n" for key, value in control.items())
        (root / "DEBIAN").mkdir()
        (root / "DEBIAN/control").write_text(text)
        deb = self._folder / f"pool/{name}.deb"
        deb.parent.mkdir(exist_ok=True)
        command = ["dpkg-deb", "-Znone", "--root-owner-group", "--build", str(root), str(deb)]
        subprocess.run(command, check=True, capture_output=True)
        data = deb.read_bytes()
        self._index += f"{text}Filename: pool/{deb.name}\nSize: {len(data)}\nSHA256: {hashlib.sha256(data).hexdigest()}\n\n"
        self._write_index()

    def _write_index(self) -> None:
        suite = self._folder / f"dists/{SUITE}"
        binary = suite / "main/binary-amd64"
        binary.mkdir(parents=True, exist_ok=True)
        data = self._index.encode()
        (binary / "Packages").write_bytes(data)
        (binary / "Packages.gz").write_bytes(gzip.compress(data))
        lines = "".join(
            f" {hashlib.sha256(path.read_bytes()).hexdigest()} {path.stat().st_size} {path.relative_to(suite)}\n"
            for path in (binary / "Packages", binary / "Packages.gz")
        )
        (suite / "Release").write_text(
            f"Origin: tests\nSuite: {SUITE}\nCodename: {SUITE}\nArchitectures: amd64 all\nComponents: main\n"
            f"Date: Sat, 01 Jan 2000 00:00:00 UTC\nSHA256:\n{lines}"
        )


@contextmanager
def served_repository(place: Path) -> Iterator[Repository]:
    made = Repository(place / "repository")
    made_in = place / "packages"
    for each in (place / "repository", made_in):
        each.mkdir()
    base = _make_base(made_in / "base")
    made.entries = read_entries(base)
    made.add("tiny-base", base, Essential="yes", Priority="required")
    made.add("apt", make_files(made_in / "apt", {"etc/apt/apt.conf.d/empty": ""}), Priority="required")
    python = _make_python(made_in / "python")
    made.python = read_entries(python)
    made.add("python3", python)
    made.add("greeter", make_files(made_in / "greeter", {"usr/bin/greet": "#!/bin/sh\necho greetings from a package\n"}))

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(place / "repository"))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        made.address = f"http://127.0.0.1:{server.server_port}"
        try:
            yield made
        finally:
            server.shutdown()
            thread.join()


def make_files(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    return root


def read_entries(root: Path) -> list[tuple[tarfile.TarInfo, bytes]]:
    """Folders, files and links of it, as an image has them."""
    found: list[tuple[tarfile.TarInfo, bytes]] = []
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found.append(link(name, str(path.readlink())))
        else:
            found.append(folder(name) if path.is_dir() else entry(name, path.read_bytes(), mode=path.stat().st_mode & 0o777))
    return found


def _make_base(root: Path) -> Path:
    """A merged /usr, as Debian's."""
    _make_programs(root, (*PROGRAMS, *APT))
    for name in ("etc", "tmp", "var/lib/dpkg/info", "usr/sbin", "usr/lib64"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for name in ("bin", "sbin"):
        (root / name).symlink_to(f"usr/{name}")
    shutil.copytree("/usr/share/dpkg", root / "usr/share/dpkg")
    shutil.copy("/bin/busybox", root / "usr/bin/busybox")
    for name in ("sh", *APPLETS.split()):
        (root / "usr/bin" / name).symlink_to("busybox")
    users = {info.name: data.decode() for info, data in busybox_entries() if info.name in ("etc/passwd", "etc/group")}
    return make_files(root, users)


def _make_programs(root: Path, names: tuple[str, ...]) -> Path:
    """With what they are linked against, where it lies here."""
    programs = [shutil.which(name) or name for name in names]
    for source in (*programs, *find_linked(programs)):
        # what is in /lib here is in /usr/lib, too
        target = root / str(Path(source).parent.resolve() / Path(source).name).lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
    for name in ("lib", "lib64"):
        if Path(f"/{name}").is_symlink() and not (root / name).exists():
            (root / name).symlink_to(f"usr/{name}")
    return root


def _make_python(root: Path) -> Path:
    root.mkdir()
    wanted = [(info, data) for info, data in python_entries() if info.name.startswith(("usr/", "lib"))]
    for info, _ in wanted:
        if info.name.startswith("lib"):
            info.name = f"usr/{info.name}"
    with tarfile.open(fileobj=io.BytesIO(make_tar(wanted))) as archive:
        archive.extractall(root)
    (root / "usr/bin/python3").symlink_to(Path("/usr/bin/python3").resolve().name)
    # few files: every step of every image links each of them. pip runs from its wheel, as ensurepip has it
    [library] = root.glob("usr/lib/python3.*")
    for each in library.glob("config-*"):
        shutil.rmtree(each)
    with zipfile.ZipFile(root / f"usr/lib/{library.name.replace('.', '')}.zip", "w") as packed:
        for path in sorted(library.rglob("*.py")):
            packed.writestr(str(path.relative_to(library)), path.read_bytes())
            if path.name != "os.py":  # by which Python knows its folder
                path.unlink()
    packages = root / "usr/lib/python3/dist-packages"
    packages.mkdir(parents=True)
    shutil.copy(_PIP[0], packages)
    (packages / "pip.pth").write_text(f"{_PIP[0].name}\n")
    return root
