"""Registries that ask who comes: a login opens them for whoever has it and is seen by nobody else; what goes wrong is said in
words."""

from __future__ import annotations

import base64
import os
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from steelyard_cluster import Cluster

from oci_images import NEEDS_CONTAINERS, OciImage, Registry, busybox_entries, entry, folder
from steelyard.agent import container_images
from steelyard.agent.container_images import ContainerImages
from steelyard.config import Settings
from steelyard.errors import SteelyardError
from steelyard.lifecycle.registry_login import Login, render_login
from steelyard.model.image import Image, parse_image
from steelyard.model.owner import Owner
from steelyard.runtime.container import Containers
from steelyard.runtime.oci import Limits
from steelyard.runtime.oci.store import ImageStore, RegistryLogin

pytestmark = NEEDS_CONTAINERS
NOBODY = (65534, 65534)
USER, PASSWORD = "eve", "cloud:mountain"
SETTINGS = Settings(1, "127.0.0.1", 1, "127.0.0.1", 2, work_uid=65534, work_gid=65534, admin_user="root", admin_uid=0)


@pytest.fixture
def registry() -> Iterator[Registry]:
    made = Registry()
    made.login = (USER, PASSWORD)
    yield made
    made.close()


@pytest.fixture
def tmp_path(open_path: Path) -> Path:
    return open_path


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "images", lambda: (), limits=Limits(fetch_s=30))


def tiny(registry: Registry) -> str:
    return registry.add("team/app:1", OciImage([folder("etc"), entry("etc/hello", os.urandom(8))]))


def pull(store: ImageStore, reference: str, password: str | None = None, whose: str = "0") -> Image:
    login = None
    if password is not None:
        login = RegistryLogin(render_login(Login(USER, password), reference), whose)
    return store.ensure(parse_image(reference), NOBODY, login=login)


@pytest.mark.parametrize("asks_for", ["basic", "bearer"])
def test_a_login_opens_what_is_closed_without_it(registry: Registry, store: ImageStore, asks_for: str) -> None:
    registry.asks_for = asks_for
    reference = tiny(registry)
    for password in (None, "wrong"):
        with pytest.raises(SteelyardError, match="without a login that it knows") as refusal:
            pull(store, reference, password)
        assert refusal.value.code == "image-private"
        assert PASSWORD not in refusal.value.public
    assert pull(store, reference, PASSWORD).reference == reference


def test_what_one_user_may_read_others_must_be_let_in_for_themselves(registry: Registry, store: ImageStore) -> None:
    reference = tiny(registry)
    [layer] = registry.names["team/app:1"].layers
    image = pull(store, reference, PASSWORD, whose="1000")
    asked = len(registry.asked)
    assert pull(store, reference, PASSWORD, whose="1000") == image
    assert len(registry.asked) == asked
    with pytest.raises(SteelyardError, match="without a login"):
        pull(store, reference)
    with pytest.raises(SteelyardError, match="without a login"):
        pull(store, reference, "wrong", whose="1001")
    registry.asked.clear()
    assert pull(store, reference, PASSWORD, whose="1001") == image
    assert layer not in registry.blobs_asked, "it is here already"
    [kept] = store.look()
    assert kept.references == (reference,)


def test_a_login_is_on_no_command_line_in_no_environment_and_on_no_disk(
    registry: Registry, store: ImageStore, tmp_path: Path
) -> None:
    reference = tiny(registry)
    registry.gate.clear()
    pulling = threading.Thread(target=pull, args=(store, reference, PASSWORD))
    pulling.start()
    try:
        assert registry.asked_blob.wait(20)
        told = [PASSWORD.encode(), base64.b64encode(f"{USER}:{PASSWORD}".encode())]
        seen = [path.read_bytes() for path in (tmp_path / "images").rglob("*") if path.is_file()]
        running = 0
        for process in Path("/proc").glob("[0-9]*"):
            try:
                command = (process / "cmdline").read_bytes()
                if process.name != str(os.getpid()):
                    seen += [command, (process / "environ").read_bytes()]
                running += command.startswith(b"skopeo\0") and reference.encode() in command
            except OSError:
                continue
    finally:
        registry.gate.set()
        pulling.join()
    assert running == 1
    assert not [content for content in seen for each in told if each in content]


def test_the_owners_own_login_is_found_where_docker_keeps_it(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, reference = tmp_path / "home", tiny(registry)
    (home / ".docker").mkdir(parents=True)
    file = home / ".docker/config.json"
    os.chown(home / ".docker", 1234, 1234)
    person = SimpleNamespace(pw_dir=str(home), pw_gid=1234)
    monkeypatch.setattr(container_images, "pwd", SimpleNamespace(getpwuid={1234: person}.__getitem__))
    images = ContainerImages(Containers(tmp_path / "run", tmp_path / "images", "h"), SETTINGS)

    def fetch() -> Image:
        return images.fetch(parse_image(reference), Owner("eve", 1234), (1234, 1234))

    file.write_bytes(b'{"credsStore": "desktop", "auths": {"%s": {}}}' % registry.host.encode())
    with pytest.raises(SteelyardError, match="kept by docker-credential-desktop, which is not asked"):
        fetch()
    file.write_bytes(render_login(Login(USER, PASSWORD), reference))
    file.chmod(0o600)
    with pytest.raises(SteelyardError, match="without a login"):
        fetch()  # root's, and 0600: not eve's to read
    os.chown(file, 1234, 1234)
    assert fetch().reference == reference


def test_a_job_is_fetched_with_a_secret_that_it_is_not_told(shared: Cluster, registry: Registry) -> None:
    reference = registry.add("team/app:1", OciImage([*busybox_entries(), entry("etc/x", b"1")], config={"Env": ["PATH=/bin"]}))
    shared.ok("secrets", "create", "ghcr", f"USERNAME={USER}", f"PASSWORD={PASSWORD}")
    try:
        refused = shared.cli("run", "--image", reference, "--", "env")
        assert "--secret NAME:registry" in refused.stderr.decode()
        out = shared.ok("run", "--image", reference, "--secret", "ghcr:registry", "--", "env")
        assert "PATH=/bin" in out
        assert USER not in out.split() and PASSWORD not in out and "STEELYARD_SECRET" not in out
        forgotten = shared.cli("image", "pull", reference)
        assert "--secret NAME:registry" in forgotten.stderr.decode(), "what a login opened is closed without one"
        assert shared.ok("image", "pull", reference, "--secret", "ghcr").startswith("sha256:")
        assert "has no secret nope" in shared.cli("image", "pull", reference, "--secret", "nope").stderr.decode()
        loose = shared.cli("run", "--secret", "ghcr:registry", "--", "true")
        assert "a login at a registry is for containers" in loose.stderr.decode()
    finally:
        shared.ok("secrets", "delete", "ghcr")


def test_an_image_is_pulled_and_built_upon_with_a_secret(shared: Cluster, registry: Registry, tmp_path: Path) -> None:
    entries = [*busybox_entries(), entry("etc/x", b"2")]
    reference = registry.add("team/other:1", OciImage(entries, config={"Env": ["PATH=/bin"]}))
    shared.ok("secrets", "create", "hub", f"USERNAME={USER}", f"PASSWORD={PASSWORD}")
    try:
        assert shared.ok("image", "pull", reference, "--secret", "hub:registry").startswith("sha256:")
        (tmp_path / "image.py").write_text(
            f"import steelyard as sy\nimage = sy.Image.from_registry({reference!r}).run('env > /told')\n"
        )
        built = shared.ok("image", "build", str(tmp_path / "image.py"), "--secret", "hub").strip()
        (tmp_path / "image.py").write_text(
            f"import steelyard as sy\nimage = sy.Image.from_registry({reference!r}, secret='hub').run('env > /told')\n"
        )
        assert shared.ok("image", "build", str(tmp_path / "image.py")).strip() == built
        told = shared.ok("run", "--image", built, "--", "cat", "/told")
        assert "PATH=/bin" in told and PASSWORD not in told
    finally:
        shared.ok("secrets", "delete", "hub")


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (403, "image-forbidden", "does not give it"),
        (404, "no-such-image", "no such image or tag"),
        (429, "registry-busy", "too many requests"),
        (500, "registry-broken", "an error of its own"),
    ],
)
def test_what_a_registry_answers_is_said_in_words(
    registry: Registry, store: ImageStore, tmp_path: Path, status: int, code: str, words: str
) -> None:
    registry.login, registry.status = None, status
    store = ImageStore(tmp_path / "images", lambda: (), limits=Limits(fetch_s=3))  # it waits for long when it is told to
    with pytest.raises(SteelyardError, match=words) as refusal:
        pull(store, tiny(registry))
    assert refusal.value.code == code


def test_an_authority_of_the_sites_own_is_trusted_where_the_site_says_so(
    store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, cert, key = socket.gethostname(), tmp_path / "ca.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert, "-days", "2",
         "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}"],
        check=True, capture_output=True,
    )  # fmt: skip
    cert.chmod(0o644)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    registry = Registry(context, name)
    try:
        reference = tiny(registry)
        with pytest.raises(SteelyardError, match="nobody whom this machine trusts") as refusal:
            pull(store, reference)
        assert refusal.value.code == "registry-untrusted"
        monkeypatch.setenv("SSL_CERT_FILE", str(cert))
        assert pull(store, reference).reference == reference
    finally:
        registry.close()


def test_a_registry_elsewhere_without_tls_is_not_talked_to(store: ImageStore) -> None:
    registry = Registry(None, socket.gethostname())
    try:
        with pytest.raises(SteelyardError, match="it speaks no TLS"):
            pull(store, tiny(registry))
    finally:
        registry.close()
