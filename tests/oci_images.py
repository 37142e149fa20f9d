"""Images for tests, honest and hostile, and a registry on loopback that may be slow, lying or cut short."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import os
import shutil
import ssl
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

#: what containers and their images need, and this machine lacks
LACKING = [name for name in ("skopeo", "umoci", "crun", "busybox") if shutil.which(name) is None] + ["root"] * (os.geteuid() != 0)
NEEDS_CONTAINERS = pytest.mark.skipif(bool(LACKING), reason=f"NOT VERIFIED without {', '.join(LACKING)}: containers")

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
INDEX = "application/vnd.oci.image.index.v1+json"


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def entry(name: str, data: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    """A file, or what `type` says."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), fields.pop("mode", 0o755)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def folder(name: str, **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, type=tarfile.DIRTYPE, **fields)


def link(name: str, target: str, *, hard: bool = False) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, type=tarfile.LNKTYPE if hard else tarfile.SYMTYPE, linkname=target)


def make_tar(entries: Iterable[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for info, data in entries:
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def busybox_entries(more: str = "") -> list[tuple[tarfile.TarInfo, bytes]]:
    """A root file system with a shell: one static program and its names, and `more` of these."""
    program = Path("/bin/busybox").read_bytes()
    names = (
        "sh ls cat echo id sleep true false mount umount mknod chmod chown wget httpd env head grep test mkdir rm touch ps kill"
    )
    return [
        *(folder(name) for name in ("bin", "etc", "usr", "var")),
        folder("tmp", mode=0o1777),
        entry("bin/busybox", program),
        *(link(f"bin/{name}", "busybox") for name in (*names.split(), *more.split())),
        entry("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nweb:x:101:102::/:/bin/sh\n", mode=0o644),
        entry("etc/group", b"root:x:0:\nweb:x:102:\n", mode=0o644),
    ]


class OciImage:
    """An image as blobs. `config` goes into its config's `config`."""

    def __init__(
        self,
        *layers: Iterable[tuple[tarfile.TarInfo, bytes]] | bytes,
        config: dict[str, Any] | None = None,
        architecture: str = "amd64",
        compressed: Callable[[bytes], bytes] | None = None,
        diff_ids: list[str] | None = None,
    ) -> None:
        """A layer of bytes is the tar as it should be sent."""
        self.blobs: dict[str, bytes] = {}
        tars = [layer if isinstance(layer, bytes) else make_tar(layer) for layer in layers]
        sent = [(compressed or (lambda data: gzip.compress(data, 1, mtime=0)))(tar) for tar in tars]
        described = [{"mediaType": LAYER, **self._add(data)} for data in sent]
        self.layers = [each["digest"] for each in described]
        body = {
            "architecture": architecture,
            "os": "linux",
            "config": config or {},
            "rootfs": {"type": "layers", "diff_ids": diff_ids or [digest(tar) for tar in tars]},
        }
        told = {"mediaType": CONFIG, **self._add(json.dumps(body).encode())}
        self.manifest = json.dumps({"schemaVersion": 2, "mediaType": MANIFEST, "config": told, "layers": described}).encode()
        self.digest = digest(self.manifest)

    def _add(self, data: bytes) -> dict[str, Any]:
        self.blobs[digest(data)] = data
        return {"digest": digest(data), "size": len(data)}

    def write_layout(self, path: Path, tag: str = "latest") -> Path:
        blobs = path / "blobs" / "sha256"
        blobs.mkdir(parents=True)
        for name, data in {**self.blobs, self.digest: self.manifest}.items():
            (blobs / name.removeprefix("sha256:")).write_bytes(data)
        (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        one = {
            "mediaType": MANIFEST,
            "digest": self.digest,
            "size": len(self.manifest),
            "annotations": {"org.opencontainers.image.ref.name": tag},
        }
        (path / "index.json").write_text(json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [one]}))
        return path


class Registry:
    """A registry of the OCI distribution specification, to read from. `names`: `app:1` -> image."""

    def __init__(self, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> None:
        """Behind `tls` it listens on `host`, which may be a name."""
        self.names: dict[str, OciImage] = {}
        #: the same, of images for several machines
        self.indexes: dict[str, bytes] = {}
        #: paths of every GET
        self.asked: list[str] = []
        #: digest -> what is sent instead of that blob
        self.lies: dict[str, bytes] = {}
        #: digest -> as many bytes are sent of it, while its length says more
        self.cut: dict[str, int] = {}
        #: blobs wait for it
        self.gate = threading.Event()
        self.gate.set()
        #: who may read, and how they show it: "basic" or "bearer"
        self.login: tuple[str, str] | None = None
        self.asks_for = "basic"
        #: a status that every question about images gets
        self.status = 200
        #: set when a blob is asked for
        self.asked_blob = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer._answer(self)

            do_HEAD = do_GET

            def log_message(self, format: str, *args: Any) -> None: ...

        self._server = ThreadingHTTPServer((host, 0), Handler)
        self._server.daemon_threads = True
        self.scheme = "http" if tls is None else "https"
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self.host = f"{host}:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.gate.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def add(self, name: str, image: OciImage) -> str:
        """Its reference."""
        self.names[name] = image
        return f"{self.host}/{name}"

    def add_index(self, name: str, images: dict[str, OciImage]) -> str:
        """Its reference. One image of several: `linux/arm/v7` -> image."""
        described: list[dict[str, Any]] = []
        for platform, image in images.items():
            self.names[f"{name}-{platform.replace('/', '-')}"] = image
            parts = dict(zip(("os", "architecture", "variant"), platform.split("/"), strict=False))
            described.append({"mediaType": MANIFEST, "digest": image.digest, "size": len(image.manifest), "platform": parts})
        # as builders put them there: a statement on how it was built
        described.append({**described[0], "platform": {"os": "unknown", "architecture": "unknown"}})
        self.indexes[name] = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": described}).encode()
        return f"{self.host}/{name}"

    @property
    def blobs_asked(self) -> list[str]:
        return [path.rpartition("/")[2] for path in self.asked if "/blobs/" in path]

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path
        if request.command == "GET":
            self.asked.append(path)
        parts = path.split("/")
        if path.startswith("/token"):
            self._send_token(request)
        elif self.status != 200 and path != "/v2/":
            self._send(request, b"{}", "application/json", self.status)
        elif self.login is not None and request.headers.get("Authorization", "") != self._admits():
            self._refuse(request)
        elif path in ("/v2/", "/v2"):
            self._send(request, b"{}", "application/json")
        elif len(parts) >= 5 and parts[-2] == "manifests":
            self._send_manifest(request, "/".join(parts[2:-2]), parts[-1])
        elif len(parts) >= 5 and parts[-2] == "blobs":
            self._send_blob(request, parts[-1])
        else:
            self._send(request, b"{}", "application/json", 404)

    def _admits(self) -> str:
        return self._basic() if self.asks_for == "basic" else "Bearer of-the-tests"

    def _basic(self) -> str:
        return "Basic " + base64.b64encode(":".join(self.login or ()).encode()).decode()

    def _refuse(self, request: BaseHTTPRequestHandler) -> None:
        asks = {"basic": 'Basic realm="tests"', "bearer": f'Bearer realm="{self.scheme}://{self.host}/token",service="tests"'}
        error = {"errors": [{"code": "UNAUTHORIZED", "message": "authentication required"}]}
        headers = {"WWW-Authenticate": asks[self.asks_for]}
        self._send(request, json.dumps(error).encode(), "application/json", 401, headers=headers)

    def _send_token(self, request: BaseHTTPRequestHandler) -> None:
        known = request.headers.get("Authorization", "") == self._basic()
        answer = {"token": "of-the-tests"} if known else {"errors": [{"code": "DENIED", "message": "no such user"}]}
        self._send(request, json.dumps(answer).encode(), "application/json", 200 if known else 401)

    def _send_manifest(self, request: BaseHTTPRequestHandler, name: str, which: str) -> None:
        if (index := self.indexes.get(f"{name}:{which}")) is not None:
            self._send(request, index, INDEX)
            return
        found = self.names.get(f"{name}:{which}")
        found = found or next((each for each in self.names.values() if each.digest == which), None)
        if found is None:
            error = {"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}
            self._send(request, json.dumps(error).encode(), "application/json", 404)
        else:
            self._send(request, self.lies.get(found.digest, found.manifest), MANIFEST)

    def _send_blob(self, request: BaseHTTPRequestHandler, name: str) -> None:
        data = next((image.blobs[name] for image in self.names.values() if name in image.blobs), None)
        if data is None:
            self._send(request, b"{}", "application/json", 404)
            return
        self.asked_blob.set()
        self.gate.wait(30)
        self._send(request, self.lies.get(name, data), "application/octet-stream", cut=self.cut.get(name))

    def _send(
        self,
        request: BaseHTTPRequestHandler,
        data: bytes,
        kind: str,
        status: int = 200,
        cut: int | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        request.send_response(status)
        for name, value in (headers or {}).items():
            request.send_header(name, value)
        request.send_header("Content-Type", kind)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(data if cut is None else data[:cut])
        if cut is not None:
            request.close_connection = True


def python_entries(python: str = "/usr/bin/python3") -> list[tuple[tarfile.TarInfo, bytes]]:
    """The machine's own Python with its standard library and what that is linked against; `bin/python3` in PATH, no shell."""
    told = subprocess.run(
        [python, "-Ic", "import sysconfig, sys; print(sysconfig.get_path('stdlib'), sysconfig.get_config_var('DESTSHARED'))"],
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    program, library = Path(python).resolve(), Path(told[0])
    skipped = {
        "test",
        "idlelib",
        "tkinter",
        "lib2to3",
        "ensurepip",
        "__pycache__",
        "site-packages",
        "dist-packages",
        "pydoc_data",
    }
    files = [path for path in library.rglob("*") if path.is_file() and not skipped & {*path.relative_to(library).parts}]
    objects = [str(program), *(str(path) for path in Path(told[1]).glob("*.so"))]
    libraries = find_linked(objects)
    found = {str(program): program, **{str(path): path for path in files}, **{name: Path(name) for name in libraries}}
    return [
        *(folder(name) for name in ("etc", "bin")),
        folder("tmp", mode=0o1777),
        entry("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nweb:x:101:102::/:/bin/sh\n", mode=0o644),
        link("bin/python3", str(program)),
        *(entry(name.lstrip("/"), path.read_bytes(), mode=path.stat().st_mode & 0o777) for name, path in found.items()),
    ]


def find_linked(objects: list[str]) -> list[str]:
    """Paths of the libraries that programs and libraries are linked against, in order."""
    linked = subprocess.run(["ldd", *objects], capture_output=True, text=True, check=False).stdout
    return sorted(
        {word for line in linked.splitlines() for word in line.split() if word.startswith("/") and not word.endswith(":")}
    )
