"""Images through the whole platform: built by uv from a package index of the test's own, used by jobs and functions, removed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from doc_pages import carry_out_page
from steelyard_cluster import Cluster, wait_until
from traces import observe_traces
from wheels import make_wheels, served_index, write_site

UNPRIVILEGED = 64_321

APP = """
import steelyard as sy

image = sy.Image.python("3.11").pip_install("numpy==2.0.0").env({"GREETING": "hello"}).copy("helper.py")
app = sy.App("pics", image=image)

with image.imports():
    import numpy

@app.function(env={"OWN": "own"})
def look() -> str:
    import helper
    import os
    return f"{numpy.__version__} {helper.WORD} {os.environ['GREETING']} {os.environ['OWN']}"

@app.function
def again() -> str:
    return numpy.__version__
"""


class Site(Cluster):
    """A Steelyard whose builds know one index, a folder."""

    def __init__(self, folder: Path, uid: int | None = None) -> None:
        super().__init__(folder)
        self.site: dict[str, str] = {}
        self.index = ""
        self._uid = uid
        if uid is not None:
            os.chown(folder, uid, uid)

    def environ(self, more: dict[str, str] | None = None) -> dict[str, str]:
        return {**super().environ(more), **self.site, "HOME": str(self.folder), "TMPDIR": str(self.folder)}

    def cli(self, *args: str, **kwargs: Any) -> subprocess.CompletedProcess[bytes]:
        if self._uid is None:
            return super().cli(*args, **kwargs)
        return subprocess.run(
            self.command(*args), capture_output=True, stdin=subprocess.DEVNULL, env=self.environ(), cwd=self.folder, timeout=60,
            user=self._uid, group=self._uid, extra_groups=[], check=False,
        )  # fmt: skip

    @property
    def images(self) -> Path:
        return self.home / "environments" / str(self._uid if self._uid is not None else os.getuid())

    def build(self, *args: str) -> str:
        return self.ok("image", "build", *args).strip()

    def image(self, name: str) -> dict[str, Any]:
        return self.api("GET", f"/v1/images/{name}").json()

    def inside(self, image: str, code: str) -> str:
        return self.ok("run", "--image", image, "--", "python", "-c", code).strip()

    def left_overs(self) -> list[str]:
        return [name for name in os.listdir(self.images) if name.startswith(".")]

    def wait_swept(self) -> None:
        wait_until(lambda: not self.left_overs(), 10, "leftovers to be swept")


@pytest.fixture(scope="module")
def shared() -> Iterator[Site]:
    before = observe_traces()
    with started() as made:
        yield made
    left = observe_traces().settled_minus(before)
    assert not left, f"left behind:\n{left}"


@pytest.fixture
def site(nothing_left_behind: None) -> Iterator[Site]:
    with started() as made:
        yield made


class started:
    """`up`, and everything gone afterwards."""

    def __init__(self, *options: str, uid: int | None = None) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="sy-", dir="/tmp"))
        self._folder.chmod(0o755)
        self._site, self._options = Site(self._folder, uid), options

    def __enter__(self) -> Site:
        with contextlib.ExitStack() as stack:
            index = stack.enter_context(served_index(make_wheels(self._folder), self._folder))
            self._site.site, self._site.index = write_site(self._folder, index), index
            self._stack = stack.pop_all()
        self._site.up(*self._options)
        return self._site

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self._site.print_logs()
        self._site.down()
        self._stack.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def write_app(site: Site, text: str = APP, folder: str = "app") -> Path:
    made = site.folder / folder
    made.mkdir(exist_ok=True, mode=0o755)
    (made / "helper.py").write_text("WORD = 'helped'\n")
    file = made / "pics.py"
    file.write_text(text)
    return file


def inode(site: Site, image: str, path: str) -> int:
    return (site.images / image / "venv/lib/python3.11/site-packages" / path).stat().st_ino


def test_an_image_is_built_once_and_one_package_more_costs_that_package(shared: Site) -> None:
    first = shared.build("numpy", "--name", "numbers")
    assert shared.build("numpy", "--name", "numbers") == first
    builds = [job for job in shared.api("GET", "/v1/jobs").json() if job["name"].startswith("image-")]
    assert [job["name"] for job in builds] == [f"image-{first[:12]}"]
    write_app(shared, "import steelyard as sy\nmore = sy.Image.python('3.11').pip_install('numpy').pip_install('tiny')\n", "more")
    done = shared.cli("image", "build", str(shared.folder / "more/pics.py:more"))
    second = done.stdout.decode().strip()
    assert b"[2/3] pip_install numpy (cached)" in done.stderr and b"[3/3] pip_install tiny\n" in done.stderr
    assert inode(shared, first, "numpy.py") == inode(shared, second, "numpy.py")
    assert shared.inside(second, "import numpy, tiny; print(numpy.__version__, tiny.__version__)") == "2.1.0 1.0"
    view = shared.image("numbers")
    assert (view["state"], view["python"][:5], view["packages"]) == ("READY", "3.11.", ["numpy 2.1.0"])
    assert [layer["text"] for layer in view["layers"]] == ["python 3.11", "pip_install numpy"]
    assert shared.ok("image", "ls").splitlines()[1].startswith("numbers")


def test_nothing_is_built_as_root_and_nobody_else_gets_in(shared: Site) -> None:
    write_app(shared, "import steelyard as sy\nimage = sy.Image.python('3.11').run('id -u > who')\n", "who")
    id_ = shared.build(str(shared.folder / "who/pics.py"))
    assert (shared.images / id_ / "files/who").read_text().strip() == "64000"
    for path in (shared.images, shared.images / id_):
        assert path.stat().st_uid == 64000
    assert stat.S_IMODE(shared.images.stat().st_mode) == 0o700
    done = subprocess.run(["ls", str(shared.images)], user=UNPRIVILEGED, group=UNPRIVILEGED, capture_output=True, check=False)
    assert done.returncode != 0
    # nor can what runs in it write to a file that other layers have too
    python = shared.images / id_ / "venv/lib/python3.11/site-packages/steelyard_files.pth"
    assert not python.stat().st_mode & 0o222
    refused = shared.cli("run", "--as-root", "--image", id_, "--", "true")
    assert refused.returncode == 125 and b"Root does not run what others may change" in refused.stderr


def test_functions_of_an_app_run_in_its_image_and_share_an_environment(shared: Site) -> None:
    file = write_app(shared)
    assert "pics-look" in shared.ok("deploy", str(file))
    try:
        assert shared.ok("call", "pics-look").strip() == '"2.0.0 helped hello own"'
        assert shared.ok("call", "pics-again").strip() == '"2.0.0"'
        id_ = shared.function("pics-look")["spec"]["image"]
        assert shared.function("pics-again")["spec"]["image"] == id_
        lines = [json.loads(shared.ok("template", name, "--json")) for name in ("pics-look", "pics-again")]
        assert lines[0][0]["pid"] == lines[1][0]["pid"]  # the base; environments differ by `env=`
        refused = shared.cli("image", "rm", id_)
        assert refused.returncode == 2 and b"needed by function pics-" in refused.stderr
        assert sorted(shared.image(id_)["used_by"]) == ["function pics-again", "function pics-look"]
    finally:
        for name in ("pics-look", "pics-again"):
            shared.cli("delete", name)
    shared.ok("image", "rm", id_)
    wait_until(lambda: not (shared.images / id_).exists(), 10, "the image to be gone")
    assert shared.api("GET", f"/v1/images/{id_}").status == 404


def test_two_functions_of_one_image_fork_from_one_environment(shared: Site) -> None:
    text = """
import steelyard as sy
app = sy.App("twins", image=sy.Image.python("3.11").pip_install("numpy==2.0.0"))
with app.image.imports():
    import numpy

@app.function
def one() -> str:
    return numpy.__version__

@app.function
def two() -> str:
    return numpy.__version__
"""
    shared.ok("deploy", str(write_app(shared, text, "twins")))
    try:
        lines = [json.loads(shared.ok("template", f"twins-{name}", "--json")) for name in ("one", "two")]
        roles = [[(each["role"], each["pid"]) for each in line[:-1]] for line in lines]
        assert [role for role, _ in roles[0]] == ["base", "environment"] and roles[0] == roles[1]
    finally:
        for name in ("one", "two"):
            shared.cli("delete", f"twins-{name}")


def test_run_builds_what_is_missing_first(shared: Site) -> None:
    file = write_app(shared, APP.replace("2.0.0", "2.1.0"), "run")
    done = shared.cli("run", f"{file}:look")
    assert (done.returncode, done.stdout.decode().strip()) == (0, "2.1.0 helped hello own"), done.stderr.decode()
    assert b"pip_install numpy==2.1.0" in done.stderr


def test_a_failing_step_is_quoted_and_what_serves_goes_on(shared: Site) -> None:
    file = write_app(shared, folder="fails")
    shared.ok("deploy", str(file), "--replace")
    before = shared.function("pics-look")["revision"]
    try:
        file.write_text(APP.replace('pip_install("numpy==2.0.0")', 'pip_install("numpy==2.0.0").pip_install("no-such-thing")'))
        done = shared.cli("deploy", str(file))
        assert done.returncode == 2
        said = done.stderr.decode()
        assert "Step 3 of 5, pip_install no-such-thing: there is no such package" in said
        assert "Nothing was deployed" in said and "| " in said
        assert shared.function("pics-look")["revision"] == before
        assert shared.ok("call", "pics-again").strip() == '"2.0.0"'
        failed = next(each for each in shared.api("GET", "/v1/images").json() if each["state"] == "FAILED")
        assert "steelyard logs j-" in failed["detail"]
        refused = shared.cli("run", "--image", failed["id"], "--", "true")
        assert refused.returncode == 125 and b"FAILED" in refused.stderr
        shared.wait_swept()
    finally:
        for name in ("pics-look", "pics-again"):
            shared.cli("delete", name)


@pytest.mark.parametrize(
    ("step", "text"),
    [
        ("Image.python('3.14')", "There is: 3.11."),
        ("Image.python('3.11').run('exit 3')", "Step 2 of 2, run exit 3: exit code 3."),
        ("Image.python('3.11').pip_install('numpy==9')", "there is no such package, or no release"),
        ("Image.python('3.11').pip_install('tiny', index_url='http://127.0.0.1:9/simple')", "could not be reached"),
    ],
)
def test_what_can_not_be_built_says_why(shared: Site, step: str, text: str) -> None:
    file = write_app(shared, f"import steelyard as sy\nimage = sy.{step}\n", "wrong")
    done = shared.cli("image", "build", str(file))
    assert done.returncode == 2
    assert text in done.stderr.decode()


def test_requirements_and_names_on_the_command_line(shared: Site) -> None:
    (shared.folder / "requirements.txt").write_text("pandas  # brings numpy\ntiny==1.0\n")
    id_ = shared.build("-r", "requirements.txt", "--python", "3.11", "--name", "sheets", "--env", "A=b")
    assert shared.image("sheets")["packages"] == ["numpy 2.1.0", "pandas 3.0.0", "tiny 1.0"]
    assert shared.inside("sheets", "import os; print(os.environ['A'])") == "b"
    assert shared.inside(id_[:10], "import pandas; print(pandas.__version__)") == "3.0.0"
    shared.build("tiny", "--name", "sheets")
    assert shared.image("sheets")["id"] != id_ and shared.image(id_)["name"] == ""
    (shared.folder / "requirements.txt").write_text("-r other.txt\n")
    done = shared.cli("image", "build", "-r", "requirements.txt")
    assert done.returncode == 2 and b"line 1: '-r other.txt' leads to other files" in done.stderr


def test_a_lock_file_is_installed_as_it_is_and_one_that_does_not_fit_is_refused(shared: Site) -> None:
    project = shared.folder / "project"
    project.mkdir(exist_ok=True)
    toml = f"""[project]
name = "mine"
version = "1"
requires-python = ">=3.11"
dependencies = [{{}}]
[[tool.uv.index]]
url = "{shared.index}"
default = true
"""
    (project / "pyproject.toml").write_text(toml.format('"numpy==2.0.0"'))
    uv = str(Path(shared.command()[0]).parent / "uv")
    env = {**os.environ, "UV_CACHE_DIR": str(shared.folder / "uv-cache"), **shared.site}
    subprocess.run([uv, "lock"], cwd=project, check=True, capture_output=True, env=env)
    id_ = shared.build("--uv-lock", "project", "--name", "locked")
    assert shared.image(id_)["packages"] == ["numpy 2.0.0"]
    (project / "pyproject.toml").write_text(toml.format('"numpy>=2.1"'))
    done = shared.cli("image", "build", "--uv-lock", "project/uv.lock")
    assert done.returncode == 2 and b"uv.lock does not fit its pyproject.toml. Run `uv lock`" in done.stderr, done.stderr


def test_files_are_copied_and_commands_see_and_change_their_own_copy(shared: Site) -> None:
    folder = shared.folder / "copied"
    (folder / "data/sub").mkdir(parents=True)
    (folder / ".gitignore").write_text("data\n")
    (folder / "data/sub/words.txt").write_text("one\n")
    (folder / "pics.py").write_text(
        "import steelyard as sy\n"
        "one = sy.Image.python('3.11').copy('data', 'stuff').copy('pics.py', 'stuff/')\n"
        "two = one.run('echo two >> stuff/sub/words.txt', 'python -c \"import sys; print(sys.prefix)\"')\n"
    )
    one, two = (shared.build(f"{folder}/pics.py:{name}") for name in ("one", "two"))
    code = "import os, pathlib; print(pathlib.Path(os.environ['STEELYARD_IMAGE'], 'stuff/sub/words.txt').read_text().split())"
    assert (shared.inside(one, code), shared.inside(two, code)) == ("['one']", "['one', 'two']")
    assert (
        shared.inside(one, "import os; print(sorted(os.listdir(os.environ['STEELYARD_IMAGE'] + '/stuff')))")
        == "['pics.py', 'sub']"
    )


def test_a_job_reads_only_what_it_builds_from(shared: Site) -> None:
    id_ = shared.build("tiny")
    code = f"""
import os, urllib.error, urllib.request
for path in ("/v1/images", "/v1/images/{id_}", "/v1/bundles/{"0" * 64}"):
    headers = {{"Authorization": "Bearer " + os.environ["STEELYARD_TOKEN"]}}
    try:
        print(urllib.request.urlopen(urllib.request.Request(os.environ["STEELYARD_API_URL"] + path, headers=headers)).status)
    except urllib.error.HTTPError as err:
        print(err.code)
"""
    assert shared.inside(id_, code).split() == ["401", "404", "404"]


def test_yaml_and_sbatch_scripts_name_images(shared: Site) -> None:
    shared.build("tiny", "--name", "yaml")
    file = shared.folder / "job.yaml"
    file.write_text("type: job\nname: versed\nimage: yaml\ncommand: [python, -c, 'import tiny; print(tiny.__version__)']\n")
    shared.ok("apply", "-f", str(file), "--yes")
    job = next(each for each in shared.api("GET", "/v1/jobs").json() if each["name"] == "versed")
    shared.wait_job(job["id"], "SUCCEEDED")
    assert shared.ok("logs", job["id"]).strip() == "1.0"
    script = shared.folder / "job.sh"
    script.write_text("#!/bin/sh\npython -c 'import tiny; print(tiny.__version__)'\n")
    output = shared.folder / "out"
    output.mkdir()
    output.chmod(0o777)
    shared.ok("submit", "--wait", "--image", "yaml", f"--output={output}/said", str(script))
    assert (output / "said").read_text().strip() == "1.0"
    assert shared.cli("submit", "--image", "nonsense", str(script)).returncode == 2


@pytest.mark.timeout(180)
def test_the_page_is_true(shared: Site) -> None:
    carry_out_page(shared, "environments.md")


# killed, and missing


def start_build(site: Site, command: str) -> tuple[subprocess.Popen[bytes], dict[str, Any]]:
    """A build that has come to that command; the process of `image build`, and the image."""
    write_app(site, f"import steelyard as sy\nimage = sy.Image.python('3.11').pip_install('tiny').run({command!r})\n", "slow")
    process = site.start("image", "build", str(site.folder / "slow/pics.py"))

    def under_way() -> dict[str, Any] | None:
        images = site.api("GET", "/v1/images").json()
        return next((each for each in images if (site.images / f".making-{each['id']}/files/begun").exists()), None)

    return process, wait_until(under_way, 30, "the build to have begun")


def test_a_build_that_is_killed_leaves_nothing_that_counts(site: Site) -> None:
    process, image = start_build(site, "touch begun; sleep 60")
    site.ok("stop", "--signal", "KILL", image["job"])
    said = process.communicate(timeout=30)[1].decode()
    assert process.returncode == 2 and "could not be built" in said and "signal 9" in said
    assert site.image(image["id"])["state"] == "FAILED"
    assert not (site.images / image["id"]).exists()
    site.wait_swept()
    # what was done before it is there for the next
    done = site.cli("image", "build", "tiny")
    assert done.returncode == 0 and b"pip_install tiny (cached)" in done.stderr, done.stderr


def test_a_build_goes_on_while_server_and_agent_are_killed(shared: Site) -> None:
    gate = shared.folder / "gate"
    os.mkfifo(gate, 0o644)
    process, image = start_build(shared, f"touch begun; cat {gate}")
    for program in ("server", "agent"):
        shared.wait_replaced(program, shared.kill(program))
    shared.wait_ready()
    gate.write_text("open\n")
    said = process.communicate(timeout=30)
    assert (process.returncode, said[0].decode().strip()) == (0, image["id"]), said
    assert shared.image(image["id"])["state"] == "READY"


def test_an_image_that_vanished_is_missing_and_work_says_so(shared: Site) -> None:
    # nobody else's image
    build = ("tiny", "--name", "lost", "--env", "OF=this")
    id_ = shared.build(*build)
    job = shared.ok("run", "--detach", "--hold", "--image", "lost", "--", "true").strip()
    shutil.rmtree(shared.images / id_)
    wait_until(lambda: shared.image("lost")["state"] == "MISSING", 10, "it to be missed")
    shared.ok("release", job)
    failed = shared.wait_job(job, "FAILED")
    assert failed["reason"] == "image-missing" and "Build it again" in failed["detail"]
    refused = shared.cli("run", "--image", "lost", "--", "true")
    assert refused.returncode == 125 and b"MISSING" in refused.stderr
    assert shared.build(*build) == id_
    assert shared.inside("lost", "import tiny; print(tiny.__version__)") == "1.0"


def test_a_user_without_root_builds_and_runs() -> None:
    with started(uid=UNPRIVILEGED) as site:
        id_ = site.build("numpy", "--name", "mine")
        assert site.images.stat().st_uid == UNPRIVILEGED
        assert site.inside("mine", "import numpy, os; print(numpy.__version__, os.getuid())") == f"2.1.0 {UNPRIVILEGED}"
        assert id_ == site.build("numpy")
