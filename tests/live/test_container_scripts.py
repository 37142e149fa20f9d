"""Scripts for sbatch on the files of an image: Slurm's commands work inside, and what is around the caller stays outside."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from steelyard_cluster import Cluster

from oci_images import NEEDS_CONTAINERS, OciImage, Registry, busybox_entries, python_entries

pytestmark = NEEDS_CONTAINERS
CONFIG = {"Env": ["PATH=/bin", "FROM_IMAGE=yes"], "WorkingDir": "/var", "Entrypoint": ["/bin/false"]}


@pytest.fixture(scope="module")
def image(registry: Registry) -> str:
    return registry.add("busybox:1", OciImage(busybox_entries(), config=CONFIG))


@pytest.fixture(scope="module")
def python(registry: Registry) -> str:
    return registry.add("python:3", OciImage(busybox_entries(), python_entries(), config=CONFIG))


def submit(cluster: Cluster, tmp_path: Path, script: str, *options: str) -> str:
    """Its output. /tmp alone is everybody's to write."""
    file, out = tmp_path / "job.sh", Path("/tmp") / f"steelyard-script-{os.urandom(6).hex()}"
    file.write_text(script)
    try:
        done = cluster.cli("submit", "--wait", "-n", "2", "-o", str(out), *options, str(file))
        said = out.read_text() if out.exists() else ""
        assert done.returncode == 0, (done.stderr.decode(), said)
        return said
    finally:
        out.unlink(missing_ok=True)


def test_a_script_runs_in_the_images_folder_with_its_variables_and_without_its_entry_point(
    shared: Cluster, tmp_path: Path, image: str
) -> None:
    os.environ["OF_THE_CALLER"] = "x"
    try:
        script = '#!/bin/sh\npwd\necho "$FROM_IMAGE $OF_THE_CALLER $MINE"\nls -d /root 2>/dev/null || echo "no /root"\n'
        out = submit(shared, tmp_path, script, "--image", image, "--export=ALL,MINE=1")
    finally:
        del os.environ["OF_THE_CALLER"]
    assert out.splitlines() == ["/var", "yes  1", "no /root"]


def test_chdir_is_a_folder_of_the_image(shared: Cluster, tmp_path: Path, image: str) -> None:
    assert submit(shared, tmp_path, "#!/bin/sh\n#SBATCH --chdir=/etc\npwd\n", "--image", image) == "/etc\n"


def test_srun_and_scontrol_work_inside(shared: Cluster, tmp_path: Path, python: str) -> None:
    script = """#!/bin/sh
srun -l sh -c 'echo "$SLURM_PROCID of $SLURM_NTASKS in $FROM_IMAGE"' | sort
scontrol show job $SLURM_JOB_ID | grep -c JobState=RUNNING
squeue -h -j $SLURM_JOB_ID -o %T
"""
    out = submit(shared, tmp_path, script.replace("| sort", ""), "--image", python).splitlines()
    assert sorted(out[:2]) == ["0: 0 of 2 in yes", "1: 1 of 2 in yes"]
    assert out[2:] == ["1", "RUNNING"]


def test_without_a_python_the_stand_ins_say_what_they_need(shared: Cluster, tmp_path: Path, image: str) -> None:
    out = submit(shared, tmp_path, "#!/bin/sh\nsrun true 2>&1\necho $?\n", "--image", image).splitlines()
    assert "no python3 here, which srun needs" in out[0]
    assert out[1] == "127"


def test_an_interpreter_that_the_image_lacks_is_named_before_anything_starts(shared: Cluster, tmp_path: Path, image: str) -> None:
    file = tmp_path / "job.sh"
    file.write_text("#!/bin/bash\ntrue\n")
    done = shared.cli("submit", "--parsable", "--image", image, str(file))
    ended = shared.wait_job(done.stdout.decode().strip(), "FAILED")
    assert ended["reason"] == "start-failed"
    assert "has no program '/bin/bash'" in ended["detail"]


def test_a_file_for_apply_names_a_layout_beside_it(shared: Cluster, open_path: Path) -> None:
    OciImage(busybox_entries(), config={"Env": ["PATH=/bin", "FROM_IMAGE=yes"]}).write_layout(open_path / "layout")
    job = 'type: job\nname: contained\nimage: oci:./layout\nnetwork: none\ncommand: [sh, -c, "echo $FROM_IMAGE"]\n'
    (open_path / "job.yaml").write_text(job)
    [made] = json.loads(shared.ok("apply", "-y", "--json", "-f", str(open_path / "job.yaml")))
    shared.wait_job(made["id"], "SUCCEEDED")
    assert shared.ok("logs", made["id"]) == "yes\n"
