"""Recipes for language models: what is refused before anything is written, and that the file says what was asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from steelyard.cli import apply as apply_command
from steelyard.cli import recipe as recipe_module
from steelyard.cli import topo as topo_module
from steelyard.cli.apply import make_function_spec
from steelyard.cli.deploy import deploy
from steelyard.cli.documents import Document
from steelyard.cli.model_files import ModelFiles
from steelyard.cli.recipe import Program, check_fit
from steelyard.errors import Refused, SteelyardError
from steelyard.model.function import ScaleOn
from steelyard.model.gpu_demand import parse_gpu_demand
from steelyard.model.topology import Gpu, Topology

GB = 10**9
H100 = tuple(Gpu(f"0000:{at}0:00.0", "NVIDIA H100 80GB HBM3", "NVIDIA", 80 * GB) for at in range(4))


def write_model(folder: Path, heads: int = 32, size: int = 16 * GB, **more: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"num_attention_heads": heads, **more}))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": size}}))
    return folder


class World:
    """A folder of the user's, a machine, and what was applied."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.gpus = folder, H100
        self.applied: list[Document] = []
        self.installed = {"vllm"}
        monkeypatch.chdir(folder)
        monkeypatch.setenv("HF_HOME", str(folder / "hf"))
        monkeypatch.setenv("PATH", str(folder / "bin"))
        monkeypatch.setattr(topo_module, "find_topology", lambda *_: (Topology(gpus=self.gpus), {}))
        monkeypatch.setattr(apply_command, "apply_documents", lambda documents, *_, **__: self.applied.extend(documents))
        monkeypatch.setattr(recipe_module, "_version", lambda python, package: "1" if package in self.installed else None)
        (folder / "bin").mkdir()
        for name in ("python", "vllm", "llama-server"):
            self.add_program(name)
        write_model(folder / "model")

    def add_program(self, name: str) -> None:
        (self.folder / "bin" / name).write_text("")
        (self.folder / "bin" / name).chmod(0o755)

    def deploy(self, *words: str) -> Result:
        return CliRunner().invoke(deploy, [*words, "--python", str(self.folder / "bin/python")], catch_exceptions=True)

    def refused(self, *words: str) -> str:
        error = self.deploy(*words).exception
        assert isinstance(error, SteelyardError) and not self.applied, error
        assert not list(self.folder.glob("*.yaml"))
        return error.public


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


def test_the_file_says_what_was_asked_for_and_is_applied(world: World) -> None:
    done = world.deploy("--recipe", "vllm", "model", "--gpu", "H100:2", "--name", "chat", "--max-replicas", "2", "--public")
    assert done.exit_code == 0, done
    text = (world.folder / "chat.yaml").read_text()
    assert text.count("#") > 10, "it is explained"
    [document] = world.applied
    assert document.function is not None
    spec, code = make_function_spec(document.function)
    assert code is None and spec.argv == (
        str(world.folder / "bin/vllm"), "serve", str(world.folder / "model"), "--served-model-name=chat", "--host=127.0.0.1",
        "--port=$PORT", "--tensor-parallel-size=2", "--gpu-memory-utilization=0.45", "--max-num-seqs=128",
    )  # fmt: skip
    assert (spec.port, spec.readiness, spec.concurrency, spec.replicas_max, spec.public) == (0, "/health", 128, 2, True)
    assert spec.resources.gpus == parse_gpu_demand("H100:2")
    assert spec.scale_on == (ScaleOn("vllm:num_requests_waiting", 8.0),)
    assert spec.env["HF_HOME"] == str(world.folder / "hf")


def test_a_model_that_is_not_here_yet_is_given_time_to_come(world: World) -> None:
    assert world.deploy("--recipe", "vllm", "Qwen/Qwen3-8B", "--gpu", "1").exit_code == 0
    [document] = world.applied
    assert document.name == "qwen3-8b" and document.function is not None
    assert document.function.target[2:4] == ("Qwen/Qwen3-8B", "--served-model-name=Qwen/Qwen3-8B")
    assert document.function.startup_deadline_s == 7200


def test_a_model_in_the_cache_is_checked_like_one_in_a_folder(world: World) -> None:
    write_model(world.folder / "hf/hub/models--Qwen--Qwen3-8B/snapshots/abc", size=900 * GB)
    assert "are 900.0 GB" in world.refused("--recipe", "vllm", "Qwen/Qwen3-8B", "--gpu", "4")


def test_what_the_user_changed_in_the_file_stays(world: World) -> None:
    words = ("--recipe", "vllm", "model", "--gpu", "2")
    assert world.deploy(*words).exit_code == 0
    assert world.deploy(*words).exit_code == 0, "the same again is no change"
    file = world.folder / "model.yaml"
    written = file.read_text()
    file.write_text(written.replace("idle_timeout: 10m", "idle_timeout: 99m"))
    done = world.deploy(*words)
    assert isinstance(done.exception, Refused) and "steelyard apply -f model.yaml" in done.exception.public
    assert "-idle_timeout: 99m" in done.stderr and "99m" in file.read_text()
    assert world.deploy(*words, "--overwrite").exit_code == 0
    assert file.read_text() == written and len(world.applied) == 3


def test_a_dry_run_prints_the_file_and_touches_nothing(world: World) -> None:
    done = world.deploy("--recipe", "vllm", "model", "--gpu", "2", "--dry-run")
    assert done.exit_code == 0 and "--tensor-parallel-size=2" in done.stdout and "NOT VERIFIED" in done.stderr
    assert not world.applied and not list(world.folder.glob("*.yaml"))


def test_without_a_gpu_all_is_checked_up_to_the_command_line(world: World) -> None:
    world.gpus = ()
    assert "NOT VERIFIED on a GPU" in world.refused("--recipe", "vllm", "model", "--gpu", "H100:2")
    done = world.deploy("--recipe", "vllm", "model", "--gpu", "H100:2")
    assert "It would run: " in done.stderr and "--tensor-parallel-size=2" in done.stderr
    assert "NOT VERIFIED on a GPU" in world.deploy("--recipe", "vllm", "model", "--gpu", "2", "--dry-run").stderr
    assert "12 attention heads" in world.refused("--recipe", "vllm", str(write_model(world.folder / "m", heads=12)), "--gpu", "5")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("vllm", "model"), "Which GPUs?"),
        (("vllm", "model", "--gpu", "3"), "32 attention heads, which 3 GPUs can't share evenly: take 1, 2, 4, 8, 16."),
        (("vllm", "model", "--gpu", "A100:1"), "This machine has no such GPUs"),
        (("vllm", "model", "--gpu", "8"), "This machine has no such GPUs"),
        (("vllm", "absent", "--gpu", "1"), "neither a folder of this machine nor a model's name"),
        (("vllm", "./absent", "--gpu", "1"), "neither a folder"),
        (("vllm", "bin", "--gpu", "1"), "holds no weights"),
        (("vllm", "a", "b", "--gpu", "1"), "takes one MODEL"),
        (("vllm", "model", "--gpu", "1", "--memory", "4GB"), "--memory is not for recipes"),
        (("vllm", "model", "--gpu", "1", "--json"), "--json is not for recipes"),
        (("llama-cpp", "model/config.json"), "is no GGUF file"),
        (("llama-cpp", "absent.gguf"), "can't be read"),
    ],
)
def test_what_can_not_work_is_refused_before_anything_is_written(world: World, words: tuple[str, ...], said: str) -> None:
    assert said in world.refused("--recipe", *words)


def test_a_damaged_configuration_is_named(world: World) -> None:
    (world.folder / "model/config.json").write_text("{")
    assert "model/config.json can't be read" in world.refused("--recipe", "vllm", "model", "--gpu", "1")


def test_a_server_that_is_not_installed_is_named_with_its_cure(world: World) -> None:
    world.installed.clear()
    assert "uv pip install --python" in world.refused("--recipe", "vllm", "model", "--gpu", "1")
    (world.folder / "bin/llama-server").unlink()
    (world.folder / "model.gguf").write_bytes(b"GGUF....")
    assert "no llama-server on PATH" in world.refused("--recipe", "llama-cpp", "model.gguf")


@pytest.mark.parametrize("gpus", [(), ("--gpu", "1")])
@pytest.mark.parametrize("own", [True, False])
def test_llama_cpp_serves_a_file_with_either_server_on_cpu_or_gpu(world: World, own: bool, gpus: tuple[str, ...]) -> None:
    (world.folder / "my model.gguf").write_bytes(b"GGUF....")
    if not own:
        (world.folder / "bin/llama-server").unlink()
        world.installed.add("llama-cpp-python")
    assert world.deploy("--recipe", "llama-cpp", "my model.gguf", *gpus).exit_code == 0
    [document] = world.applied
    assert document.name == "my-model" and document.function is not None
    argv = document.function.target
    assert str(world.folder / "my model.gguf") in argv and "$PORT" in argv
    layers = "0" if not gpus else "999" if own else "-1"
    assert argv[argv.index("--n-gpu-layers" if own else "--n_gpu_layers") + 1] == layers
    assert document.function.readiness == ("/health" if own else "/v1/models")
    assert (document.function.resources.gpus is not None) is bool(gpus)


@pytest.mark.parametrize(
    ("size", "demand", "replicas", "fits"),
    [
        (143 * GB, "2", 1, True), (145 * GB, "2", 1, False), (143 * GB, "2", 2, False), (35 * GB, "H100:0.5", 1, True),
        (37 * GB, "H100:0.5", 1, False),
    ],
)  # fmt: skip
def test_weights_must_fit_into_what_is_theirs_of_the_gpus(size: int, demand: str, replicas: int, fits: bool) -> None:
    files = ModelFiles(Path("/m"), size, 32)
    if fits:
        check_fit(files, parse_gpu_demand(demand), replicas, Topology(gpus=H100))
        return
    with pytest.raises(Refused, match="weights are"):
        check_fit(files, parse_gpu_demand(demand), replicas, Topology(gpus=H100))


def test_every_recipe_is_there() -> None:
    folder = Path(recipe_module.__file__).parent / "recipes"
    assert {file.stem for file in folder.iterdir()} == {"vllm", "llama-cpp", "llama-cpp-python"}
    assert Program("vllm", "x").recipe in recipe_module.RECIPES
