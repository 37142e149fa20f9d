"""Images come to this machine once, whole and as promised; hostile ones are refused with words or do no harm."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from oci_images import OciImage, Registry, busybox_entries, entry, folder, link, make_tar
from steelyard.errors import Refused, SteelyardError
from steelyard.host.as_user import observe_file
from steelyard.model.image import Image, parse_image
from steelyard.runtime.oci import RANGE_FIRST, Limits
from steelyard.runtime.oci.store import ImageStore

MISSING = [name for name in ("skopeo", "umoci") if shutil.which(name) is None] + ([] if os.geteuid() == 0 else ["root"])
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"NOT VERIFIED without {', '.join(MISSING)}")

SMALL = Limits(bytes_max=32 << 20, entries_max=2000, ratio_max=100, depth_max=20, fetch_s=30, unpack_s=30)
NOBODY = (65534, 65534)


@pytest.fixture
def registry() -> Iterator[Registry]:
    made = Registry()
    yield made
    made.close()


@pytest.fixture
def tmp_path(open_path: Path) -> Path:
    return open_path


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return make_store(tmp_path)


def make_store(tmp_path: Path, *, in_use: tuple[str, ...] = (), budget: int = 1 << 40) -> ImageStore:
    return ImageStore(tmp_path / "images", lambda: in_use, budget_bytes=budget, limits=SMALL)


def pull(store: ImageStore, reference: str, ids: tuple[int, int] | None = NOBODY) -> Image:
    parsed = parse_image(reference)
    return store.ensure(parsed, ids, observe_file(parsed.file, ids) if parsed.file else "")


def tiny(text: str = "hi", architecture: str = "amd64") -> OciImage:
    return OciImage([folder("etc"), entry("etc/hello", text.encode())], architecture=architecture)


def assert_nothing_counts(tmp_path: Path) -> None:
    images = tmp_path / "images"
    assert not [*images.glob("roots/*"), *images.glob("refs/*"), *images.glob("work/*")]


def test_an_image_of_a_registry_is_fetched_and_unpacked_once(registry: Registry, store: ImageStore) -> None:
    config = {
        "Env": ["A=1 2", "PATH=/bin"],
        "Cmd": ["/bin/sh"],
        "WorkingDir": "/etc",
        "User": "web",
        "ExposedPorts": {"80/tcp": {}},
    }
    reference = registry.add("app:1", OciImage(busybox_entries(), [entry("etc/hello", b"hi")], config=config))
    image = pull(store, reference)
    assert (image.command, image.env, image.cwd, image.user) == (("/bin/sh",), {"A": "1 2", "PATH": "/bin"}, "/etc", "web")
    assert image.ports == (80,)
    assert (store.root(image.digest) / "etc/hello").read_bytes() == b"hi"
    asked = len(registry.asked)
    assert pull(store, reference) == image
    assert len(registry.asked) == asked, "no word to the registry for what is here"


def test_files_belong_to_ids_that_nobody_has(registry: Registry, store: ImageStore) -> None:
    entries = [folder("bin"), entry("bin/su", b"x", mode=0o4755), entry("bin/mail", b"x", uid=8, gid=12)]
    root = store.root(pull(store, registry.add("app:1", OciImage(entries))).digest)
    assert {path.name: (path.stat().st_uid, path.stat().st_gid) for path in (root / "bin").iterdir()} == {
        "su": (RANGE_FIRST, RANGE_FIRST),
        "mail": (RANGE_FIRST + 8, RANGE_FIRST + 12),
    }


def test_later_layers_replace_and_remove_files_of_earlier_ones(registry: Registry, store: ImageStore) -> None:
    image = OciImage([folder("d"), entry("d/a", b"1"), entry("d/b", b"1")], [entry("d/a", b"2"), entry("d/.wh.b")])
    root = store.root(pull(store, registry.add("app:1", image)).digest)
    assert [(path.name, path.read_bytes()) for path in sorted((root / "d").iterdir())] == [("a", b"2")]


def test_many_who_ask_at_a_time_fetch_it_once(registry: Registry, tmp_path: Path, store: ImageStore) -> None:
    image = OciImage(busybox_entries())
    reference = registry.add("app:1", image)
    stores = [make_store(tmp_path) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda each: pull(each, reference), stores))
    assert len(set(map(str, found))) == 1
    assert registry.blobs_asked.count(image.layers[0]) == 1


def test_layers_that_came_whole_are_not_fetched_again_after_a_broken_pull(
    registry: Registry, store: ImageStore, tmp_path: Path
) -> None:
    image = OciImage([entry("a", os.urandom(4000))], [entry("b", os.urandom(400_000))])
    reference = registry.add("app:1", image)
    registry.cut[image.layers[1]] = 1000
    with pytest.raises(SteelyardError, match=r"could not be fetched") as refusal:
        pull(store, reference)
    assert refusal.value.code in ("image-truncated", "wrong-digest"), refusal.value.public
    assert_nothing_counts(tmp_path)
    registry.cut.clear()
    registry.asked.clear()
    pull(store, reference)
    assert image.layers[0] not in registry.blobs_asked


def test_the_same_content_under_two_names_is_one_image(registry: Registry, store: ImageStore) -> None:
    image = tiny()
    first, second = (pull(store, registry.add(name, image)) for name in ("app:1", "other/app:2"))
    assert first == second
    assert len(store.list()) == 1


@pytest.mark.parametrize("form", ["oci", "docker-archive"])
def test_a_folder_and_an_archive_are_read_with_the_users_rights(store: ImageStore, tmp_path: Path, form: str) -> None:
    layout = tiny().write_layout(tmp_path / "layout")
    place = layout
    if form == "docker-archive":
        place = tmp_path / "saved.tar"
        done = subprocess.run(
            ["skopeo", "--insecure-policy", "copy", "-q", f"oci:{layout}:latest", f"docker-archive:{place}:app:1"], check=False
        )
        assert done.returncode == 0
    image = pull(store, f"{form}:{place}")
    assert (store.root(image.digest) / "etc/hello").read_bytes() == b"hi"
    place.chmod(0o700 if place.is_dir() else 0o600)
    with pytest.raises(SteelyardError, match="Permission denied"):
        pull(store, f"{form}:{place}")  # it is in the cache, and still not theirs to read


def test_a_changed_archive_is_another_image(store: ImageStore, tmp_path: Path) -> None:
    layout = tiny(text="one").write_layout(tmp_path / "layout")
    first = pull(store, f"oci:{layout}")
    shutil.rmtree(layout)
    tiny(text="two").write_layout(layout)
    second = pull(store, f"oci:{layout}")
    assert first.digest != second.digest
    assert (store.root(second.digest) / "etc/hello").read_bytes() == b"two"


def test_layers_compressed_with_zstd_are_taken(store: ImageStore, tmp_path: Path) -> None:
    plain, packed = tiny(text="zst").write_layout(tmp_path / "plain"), tmp_path / "packed"
    subprocess.run(
        ["skopeo", "--insecure-policy", "copy", "-q", "--dest-compress-format", "zstd", f"oci:{plain}:latest", f"oci:{packed}:1"],
        check=True,
    )
    assert any(path.read_bytes().startswith(b"\x28\xb5\x2f\xfd") for path in (packed / "blobs/sha256").iterdir())
    root = store.root(pull(store, f"oci:{packed}").digest)
    assert (root / "etc/hello").read_bytes() == b"zst"


def test_an_image_keeps_the_digest_that_its_registry_gave_it(registry: Registry, store: ImageStore) -> None:
    image = tiny()
    reference = f"{registry.add('app:1', image).rpartition(':')[0]}@{image.digest}"
    assert pull(store, reference).digest == image.digest.removeprefix("sha256:")


# -- what is not there, or not what it says


def test_what_a_registry_does_not_have_is_said_with_its_name(registry: Registry, store: ImageStore, tmp_path: Path) -> None:
    registry.add("app:1", tiny())
    with pytest.raises(SteelyardError, match="no such image or tag") as refusal:
        pull(store, f"{registry.host}/app:2")
    assert refusal.value.code == "no-such-image"
    assert_nothing_counts(tmp_path)


def test_a_registry_that_is_down_is_said_so(registry: Registry, store: ImageStore) -> None:
    reference = registry.add("app:1", tiny())
    registry.close()
    with pytest.raises(SteelyardError, match="does not answer") as refusal:
        pull(store, reference)
    assert refusal.value.code == "registry-unreachable"


def test_a_registry_that_goes_silent_is_given_up(registry: Registry, tmp_path: Path, store: ImageStore) -> None:
    reference = registry.add("app:1", tiny())
    registry.gate.clear()
    slow = ImageStore(tmp_path / "images", lambda: (), limits=Limits(fetch_s=2))
    with pytest.raises(SteelyardError, match="could not be fetched") as refusal:
        pull(slow, reference)
    assert refusal.value.code == "registry-slow"
    assert_nothing_counts(tmp_path)


@pytest.mark.parametrize("what", ["layer", "manifest"])
def test_what_is_not_what_its_digest_says_is_never_used(registry: Registry, store: ImageStore, tmp_path: Path, what: str) -> None:
    image, other = tiny(), tiny(text="evil")
    reference = registry.add("app:1", image)
    if what == "layer":
        registry.lies[image.layers[0]] = other.blobs[other.layers[0]]
    else:
        registry.lies[image.digest] = other.manifest
        reference = f"{registry.host}/app@{image.digest}"
        registry.names["other:1"] = other
    with pytest.raises(SteelyardError, match="not be fetched"):
        pull(store, reference)
    assert_nothing_counts(tmp_path)


def test_a_blob_that_was_changed_in_the_cache_is_found_out_and_fetched_anew(
    registry: Registry, store: ImageStore, tmp_path: Path
) -> None:
    image = tiny()
    reference = registry.add("app:1", image)
    store.remove(pull(store, reference).digest)
    blob = tmp_path / "images/blobs/sha256" / image.layers[0].removeprefix("sha256:")
    blob.write_bytes(gzip.compress(make_tar([entry("etc/evil", b"x")])))
    os.chown(blob, RANGE_FIRST + 65536, RANGE_FIRST + 65536)
    with pytest.raises(SteelyardError, match="digest"):
        pull(store, reference)
    assert_nothing_counts(tmp_path)
    assert (store.root(pull(store, reference).digest) / "etc/hello").read_bytes() == b"hi"


def test_a_layer_that_unpacks_to_something_else_is_refused(registry: Registry, store: ImageStore, tmp_path: Path) -> None:
    lying = OciImage([entry("a", b"1")], diff_ids=["sha256:" + "0" * 64])
    with pytest.raises(SteelyardError, match="refused") as refusal:
        pull(store, registry.add("app:1", lying))
    assert refusal.value.code == "image-refused"
    assert_nothing_counts(tmp_path)


def test_another_architecture_is_named(registry: Registry, store: ImageStore) -> None:
    with pytest.raises(SteelyardError, match="made for linux/s390x") as refusal:
        pull(store, registry.add("app:1", tiny(architecture="s390x")))
    assert refusal.value.code == "wrong-architecture"


def test_an_image_for_several_machines_of_which_this_is_none_tells_what_there_is(registry: Registry, store: ImageStore) -> None:
    reference = registry.add_index("app:1", {"linux/s390x": tiny(architecture="s390x"), "linux/arm/v7": tiny(architecture="arm")})
    with pytest.raises(Refused, match=r"is made for linux/s390x, linux/arm/v7, and this machine is linux/\w+\. ") as refusal:
        pull(store, reference)
    assert refusal.value.code == "wrong-architecture"
    assert "skopeo" not in refusal.value.public and "manifest" not in refusal.value.public


def test_of_an_image_for_several_machines_this_ones_is_taken(registry: Registry, store: ImageStore) -> None:
    mine = tiny(text="mine")
    reference = registry.add_index("app:1", {"linux/s390x": tiny(architecture="s390x"), "linux/amd64": mine})
    assert pull(store, reference).digest == mine.digest.removeprefix("sha256:")


# -- hostile layers


BOMB = [entry("zeros", bytes(40 << 20))]
HOSTILE = {
    "more bytes than allowed": (BOMB, "more than"),
    "more files than allowed": ([entry(f"f{n}") for n in range(2500)], "more than 2000 files"),
    "folders too deep": ([entry("/".join("d" * 30))], "deep"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_bomb_is_stopped_and_nothing_of_it_stays(registry: Registry, store: ImageStore, tmp_path: Path, case: str) -> None:
    entries, words = HOSTILE[case]
    with pytest.raises(SteelyardError, match=words) as refusal:
        pull(store, registry.add("app:1", OciImage(entries)))
    assert refusal.value.code == "image-refused"
    assert_nothing_counts(tmp_path)


def test_a_sparse_file_counts_with_its_holes(registry: Registry, store: ImageStore) -> None:
    info, data = entry("sparse", b"x")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(1 << 40)}
    with pytest.raises(SteelyardError, match="more than"):
        pull(store, registry.add("app:1", OciImage([(info, data)])))


@pytest.mark.parametrize("damage", ["half of the gzip", "half of the tar", "no tar", "zstd"])
def test_a_damaged_layer_is_refused(registry: Registry, store: ImageStore, tmp_path: Path, damage: str) -> None:
    whole = make_tar([entry("a", os.urandom(60_000)), entry("b", os.urandom(60_000))])
    image = {
        "half of the gzip": lambda: OciImage(whole, compressed=lambda data: gzip.compress(data)[:40_000]),
        "half of the tar": lambda: OciImage(whole[:90_000]),
        "no tar": lambda: OciImage(os.urandom(4096)),
        "zstd": lambda: OciImage(whole, compressed=lambda data: b"\x28\xb5\x2f\xfd" + data),
    }[damage]()
    with pytest.raises(SteelyardError, match=r"refused|could not be fetched"):
        pull(store, registry.add("app:1", image))
    assert_nothing_counts(tmp_path)


ESCAPES = {
    "dots": [entry("../../../../../../tmp/steelyard-escaped", b"x")],
    "absolute": [entry("/tmp/steelyard-escaped", b"x")],
    "link to outside": [link("out", "/tmp"), entry("out/steelyard-escaped", b"x")],
    "link by dots": [link("out", "../../../../../../../../tmp"), entry("out/steelyard-escaped", b"x")],
    "chain of links": [link("a", "/"), link("b", "a/tmp"), link("c", "b"), entry("c/steelyard-escaped", b"x")],
    "hard link to a link": [link("l", "/etc/passwd"), link("h", "l", hard=True), entry("h", b"evil")],
    "hard link to outside": [link("h", "../../../../../etc/passwd", hard=True), entry("h", b"evil")],
    "same name twice": [entry("x", b"1"), link("x", "/etc"), entry("x/passwd", b"evil")],
    "whiteout of outside": [entry("../../.wh.tmp"), entry("a/../../.wh..wh..opq")],
    "device": [folder("dev"), entry("dev/sda", type=tarfile.BLKTYPE, devmajor=254, devminor=0, mode=0o666)],
    "pipe": [entry("pipe", type=tarfile.FIFOTYPE)],
}


@pytest.mark.parametrize("case", ESCAPES)
def test_what_points_outside_changes_nothing_outside(registry: Registry, store: ImageStore, tmp_path: Path, case: str) -> None:
    passwd = Path("/etc/passwd").read_bytes()
    witness = tmp_path / "images-witness"
    witness.write_text("here")
    try:
        root = store.root(pull(store, registry.add("app:1", OciImage([folder("etc"), *ESCAPES[case]]))).digest)
    except Refused:
        assert_nothing_counts(tmp_path)
    else:
        modes = [path.lstat().st_mode for path in root.rglob("*")]
        assert not any(mode & 0o170000 in (0o060000, 0o020000) for mode in modes), "no device nodes"
        owners = {path.lstat().st_uid for path in root.rglob("*")}
        assert all(RANGE_FIRST <= owner < RANGE_FIRST + 65536 for owner in owners)
    assert Path("/etc/passwd").read_bytes() == passwd
    assert not Path("/tmp/steelyard-escaped").exists()
    assert witness.read_text() == "here"


# -- what stays and what goes


def test_over_budget_the_one_not_used_for_longest_goes_unless_it_runs(
    registry: Registry, tmp_path: Path, store: ImageStore
) -> None:
    references = [registry.add(f"app:{n}", OciImage([entry("a", os.urandom(100_000))])) for n in range(4)]
    first, second = (pull(store, reference) for reference in references[:2])
    running = make_store(tmp_path, in_use=(first.digest,), budget=500_000)
    third = pull(running, references[2])
    assert {image.digest for image in running.list()} == {first.digest, third.digest}
    assert not store.root(second.digest).exists()
    blobs = {path.name for path in (tmp_path / "images/blobs/sha256").iterdir()}
    assert blobs == {*first.blobs, *third.blobs}
    assert pull(store, references[1]).digest == second.digest, "it comes again when it is wanted"


def test_a_full_disk_is_said_so_and_leaves_nothing(registry: Registry, tmp_path: Path, store: ImageStore) -> None:
    images = tmp_path / "images"
    images.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=711", "none", str(images)], check=True)
    try:
        with pytest.raises(SteelyardError, match="is full") as refusal:
            pull(store, registry.add("app:1", OciImage([entry("a", bytes(4 << 20))])))
        assert refusal.value.code == "disk-full"
        assert_nothing_counts(tmp_path)
    finally:
        subprocess.run(["umount", str(images)], check=True)


def test_a_cache_that_cannot_be_written_is_said_so(registry: Registry, tmp_path: Path, store: ImageStore) -> None:
    images = tmp_path / "images"
    images.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,size=1m,mode=711", "none", str(images)], check=True)
    try:
        with pytest.raises(SteelyardError, match=r"can't be written \(Read-only file system\)") as refusal:
            pull(store, registry.add("app:1", tiny()))
        assert refusal.value.code == "cache-unwritable"
    finally:
        subprocess.run(["umount", str(images)], check=True)


def test_what_a_killed_process_left_counts_for_nothing_and_is_swept(
    registry: Registry, store: ImageStore, tmp_path: Path
) -> None:
    image = pull(store, registry.add("app:1", tiny()))
    left = tmp_path / "images/work" / ("0" * 64)
    (left / "out/rootfs").mkdir(parents=True)
    store.sweep()
    assert not left.exists()
    assert store.list() == [image]


def test_a_pull_that_is_under_way_is_not_swept(registry: Registry, store: ImageStore, tmp_path: Path) -> None:
    reference = registry.add("app:1", tiny())
    registry.gate.clear()
    pulling = threading.Thread(target=pull, args=(store, reference))
    pulling.start()
    try:
        assert registry.asked_blob.wait(20)
        make_store(tmp_path).sweep()
        assert list((tmp_path / "images/work").iterdir())
    finally:
        registry.gate.set()
        pulling.join()
    assert len(store.list()) == 1
