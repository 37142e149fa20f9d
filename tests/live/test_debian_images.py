"""Images of Debian's packages, and functions in images that were made by steps; from a repository and an index of the tests."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from steelyard_cluster import Cluster
from wheels import make_wheels, served_index

from debian_repository import NEEDS_DEBIAN, SUITE, Repository, served_repository
from oci_images import OciImage, Registry, busybox_entries, entry, folder, link
from steelyard.runtime.uv import find_uv

pytestmark = NEEDS_DEBIAN

APP = """
import os
import steelyard as sy

image = (
    sy.Image.{base}
    .pip_install("numpy<2.1", requirements="requirements.txt", index_url="{index}")
    .copy("lib", "/srv/lib")
    .env({{"PYTHONPATH": "/srv/lib", "GREETING": "hello"}})
    .run("wc -l < /srv/lib/words.txt > /srv/count")
)
app = sy.App("{name}", image=image)

with image.imports():
    import numpy

@app.function
def look(word: str) -> dict:
    import helper
    import tiny
    return {{
        "versions": [numpy.__version__, tiny.__version__], "helper": helper.WORD, "greeting": os.environ["GREETING"],
        "lines": int(open("/srv/count").read()), "word": word, "root": sorted(os.listdir("/srv")),
    }}
"""


@pytest.fixture(scope="module")
def repository() -> Iterator[Repository]:
    with tempfile.TemporaryDirectory(prefix="steelyard-debian-") as name, served_repository(Path(name)) as made:
        yield made


@pytest.fixture(scope="module")
def index() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="steelyard-wheels-") as name:
        path = Path(name)
        with served_index(make_wheels(path), path) as made:
            yield made


def build(cluster: Cluster, tmp_path: Path, expression: str) -> str:
    """What names the image then."""
    file = tmp_path / "image.py"
    file.write_text(f"import steelyard as sy\n\nimage = sy.Image.{expression}\n")
    return cluster.ok("image", "build", str(file)).strip()


def fail(cluster: Cluster, tmp_path: Path, expression: str) -> str:
    """What is said."""
    file = tmp_path / "image.py"
    file.write_text(f"import steelyard as sy\n\nimage = sy.Image.{expression}\n")
    failed = cluster.cli("image", "build", str(file))
    assert failed.returncode == 2
    return failed.stderr.decode()


def debian(repository: Repository, *packages: str) -> str:
    words = ", ".join(repr(each) for each in (SUITE, *packages))
    return f"debian({words}, mirror={repository.mirror!r})"


def run(cluster: Cluster, image: str, script: str) -> str:
    return cluster.ok("run", "--cpus", "0.1", "--image", image, "--", "sh", "-c", script)


def test_a_debian_is_made_of_packages_alone_and_packages_are_installed_in_it(
    shared: Cluster, repository: Repository, tmp_path: Path
) -> None:
    image = build(shared, tmp_path, debian(repository, "greeter"))
    assert run(shared, image, "greet; id -u; ls /srv /target 2>/dev/null; find / -xdev -name mmdebstrap") == (
        "greetings from a package\n0\n"
    )
    assert repository.mirror in run(shared, image, "cat /etc/apt/sources.list")
    assert run(shared, image, "/usr/sbin/policy-rc.d; echo $?").strip() == "101"
    view = json.loads(shared.ok("image", "inspect", image, "--json"))
    assert (view["references"], view["user"]) == ([image], "") and view["files"] > 50
    # the same again costs no job, and another package upon the same Debian one
    before = len(json.loads(shared.ok("ps", "--json")))
    assert build(shared, tmp_path, debian(repository, "greeter")) == image
    other = build(shared, tmp_path, debian(repository) + '.run("echo two > /two")')
    assert run(shared, other, "cat /two") == "two\n"
    assert len(json.loads(shared.ok("ps", "--json"))) == before + 2


def test_packages_are_installed_upon_an_image_of_a_registry(
    shared: Cluster, registry: Registry, repository: Repository, tmp_path: Path
) -> None:
    from_packages = [
        *repository.entries,
        *map(folder, ("var/lib/dpkg/updates", "var/log/apt", "var/cache/apt/archives/partial", "etc/apt/apt.conf.d")),
        entry("var/lib/dpkg/status", mode=0o644),
        entry("etc/apt/sources.list", repository.mirror.encode(), mode=0o644),
    ]
    base = registry.add("debian:tiny", OciImage(from_packages, config={"Cmd": ["greet"]}))
    image = build(shared, tmp_path, f'from_registry("{base}").apt_install("greeter")')
    assert shared.ok("run", "--image", image) == "greetings from a package\n"
    assert run(shared, image, "ls /var/lib/apt/lists") == "", "lists that grow old are not kept"


def add_python(registry: Registry, repository: Repository) -> str:
    """An image whose python3 has pip."""
    entries = [*busybox_entries("cp wc"), *repository.python, link("lib", "usr/lib"), link("lib64", "usr/lib64")]
    return registry.add("python:pip", OciImage(entries, config={"Env": ["PATH=/bin:/usr/bin"]}))


@pytest.mark.parametrize("kind", ["debian", "from_registry"])
def test_a_function_runs_in_an_image_that_was_made_by_steps(
    shared: Cluster, registry: Registry, repository: Repository, index: str, tmp_path: Path, kind: str
) -> None:
    base = debian(repository, "python3") if kind == "debian" else f'from_registry("{add_python(registry, repository)}")'
    name = f"steps-{kind.replace('_', '-')}"
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/helper.py").write_text("WORD = 'helped'\n")
    (tmp_path / "lib/words.txt").write_text("steel\nyard\n")
    (tmp_path / "requirements.txt").write_text("tiny\n")
    (tmp_path / "app.py").write_text(APP.format(base=base, index=index, name=name))
    shared.ok("deploy", str(tmp_path / "app.py"))
    try:
        told = json.loads(shared.ok("call", f"{name}-look", "word"))
        assert told.pop("root") == ["count", "lib"]
        assert told == {"versions": ["2.0.0", "1.0"], "helper": "helped", "greeting": "hello", "lines": 2, "word": "word"}
        lines = json.loads(shared.ok("template", f"{name}-look", "--json"))
        assert [each["role"] for each in lines[:3]] == ["base", "environment", "revision"]
        said = shared.cli("template", f"{name}-look")
        assert b"built:" in said.stdout + said.stderr
    finally:
        shared.ok("delete", f"{name}-look")


def test_a_lock_file_is_installed_in_a_container_as_it_is_and_one_that_does_not_fit_is_refused(
    shared: Cluster, registry: Registry, repository: Repository, index: str, tmp_path: Path
) -> None:
    project = tmp_path / "pyproject.toml"
    text = (
        '[project]\nname = "mine"\nversion = "1"\nrequires-python = ">=3.11"\ndependencies = [{}]\n'
        f'[[tool.uv.index]]\nurl = "{index}"\ndefault = true\n'
    )
    project.write_text(text.format('"numpy==2.0.0"'))
    subprocess.run([find_uv(), "lock", "--project", str(tmp_path)], check=True, capture_output=True)
    steps = f'from_registry("{add_python(registry, repository)}").uv_sync()'
    image = build(shared, tmp_path, steps)
    assert run(shared, image, "python3 -c 'import numpy; print(numpy.__version__)'") == "2.0.0\n"
    project.write_text(text.format('"numpy>=2.1"'))
    assert "uv.lock does not fit its pyproject.toml. Run `uv lock`" in fail(shared, tmp_path, steps)


def test_what_a_container_lacks_at_its_import_is_said(
    shared: Cluster, registry: Registry, repository: Repository, tmp_path: Path
) -> None:
    reference = add_python(registry, repository)
    (tmp_path / "lacks.py").write_text(
        f"import steelyard as sy\nimage = sy.Image.from_registry({reference!r})\napp = sy.App('lacks', image=image)\n"
        "with image.imports():\n    import not_there_at_all\n\n@app.function\ndef look() -> int:\n    return 1\n"
    )
    failed = shared.cli("deploy", str(tmp_path / "lacks.py"))
    shared.cli("delete", "lacks-look")
    assert failed.returncode != 0
    assert b"No module named 'not_there_at_all'" in failed.stdout + failed.stderr


def test_what_can_not_be_made_says_why(shared: Cluster, repository: Repository, tmp_path: Path) -> None:
    base = debian(repository)
    assert "apt_install no-such-thing: there is no such package" in fail(shared, tmp_path, f'{base}.apt_install("no-such-thing")')
    assert "pip_install tiny: the image has no python3 with pip" in fail(shared, tmp_path, f'{base}.pip_install("tiny")')
