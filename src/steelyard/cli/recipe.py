"""`steelyard deploy --recipe NAME MODEL`: what must be true of a model, its server and the GPUs before it is worth a start, and
the file that says the rest. The file is the user's from then on; `apply` carries it out.

The recipes themselves are data, `recipes/*.yaml`.
"""

from __future__ import annotations

import difflib
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import click
import msgspec

from steelyard.cli.app_file import check_python
from steelyard.cli.deploy import check_name
from steelyard.cli.documents import Document, read_documents
from steelyard.cli.model_files import ModelFiles, find_cached, find_model, read_gguf
from steelyard.cli.output import say
from steelyard.config import write_file
from steelyard.errors import Refused
from steelyard.model.gpu_demand import GpuDemand, parse_gpu_demand
from steelyard.model.topology import Topology

VLLM, LLAMA_CPP, LLAMA_CPP_PYTHON = "vllm", "llama-cpp", "llama-cpp-python"
RECIPES = (VLLM, LLAMA_CPP)
#: of a GPU's memory, for weights and KV cache; vLLM's own default
MEMORY_SHARE = 0.9
#: options of `deploy` that a recipe's file takes over
TAKEN = frozenset({"name", "gpus", "python", "public", "min_replicas", "max_replicas", "concurrency", "idle_timeout", "cpus"})
_PLAIN = re.compile(r"[A-Za-z0-9/~_.][A-Za-z0-9/~_.@+=-]*", re.ASCII)
_VERSION = "import importlib.metadata as m, sys; print(m.version(sys.argv[1]))"


class Program(NamedTuple):
    """What serves the model, and by which of `recipes/*.yaml`."""

    recipe: str
    path: str


def deploy_recipe(
    home: Path | None, recipe: str, words: tuple[str, ...], given: Mapping[str, Any], *, dry_run: bool, yes: bool, overwrite: bool
) -> None:
    """`given`: options of the command line. Raises Refused, before anything is written, for what can't work."""
    from steelyard.cli.topo import find_topology

    for option in given.keys() - TAKEN:
        written = option.removeprefix("as_").replace("_", "-")
        raise Refused(f"--{written} is not for recipes: write it into the file that --dry-run shows.", code="unfit-option")
    if len(words) != 1:
        raise Refused(f"--recipe takes one MODEL, not {' '.join(words)!r}.", code="bad-model")
    program = find_program(recipe, check_python(given.get("python")))
    hf_home = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser().absolute()
    files = find_model(words[0], hf_home) if recipe == VLLM else read_gguf(words[0])
    demand = parse_gpu_demand(given["gpus"]) if given.get("gpus") else None
    if demand is None and recipe == VLLM:
        raise Refused("Which GPUs? Give --gpu, for example --gpu 1 or --gpu H100:2. Nothing was deployed.", code="bad-gpus")
    topology, _ = find_topology(None, (), home)
    check_fit(files, demand, given.get("max_replicas", 1), topology)
    name = check_name(given.get("name") or _name_of(words[0]))
    text = render_recipe(program, name, words[0], files, given, hf_home)
    path = Path(f"{name}.yaml")
    document = _read(text, path)
    unseen = demand is not None and not topology.gpus
    if dry_run:
        click.echo(text, nl=False)
        unverified = f"NOT VERIFIED on a GPU: {_NO_GPU}" if unseen else "NOT VERIFIED: nothing was started"
        say(f"{unverified}. Nothing was written or deployed.")
        return
    if unseen:
        assert document.function is not None
        say(f"It would run: {shlex.join(document.function.target)}")
        text = (
            f"NOT VERIFIED on a GPU: {_NO_GPU}. Nothing was written or deployed; --dry-run shows the file, to be applied on one."
        )
        raise Refused(text, code="no-gpu")
    from steelyard.cli.apply import apply_documents

    _write(path, text, overwrite)
    apply_documents([document], yes, home, as_json=False)


_NO_GPU = "this machine has none that its driver tells of"


def find_program(recipe: str, python: str) -> Program:
    """Raises Refused with what to install where."""
    if recipe == VLLM:
        script = Path(python).parent / "vllm"
        if _version(python, "vllm") is None or not script.is_file():
            raise Refused(
                f"vLLM is not installed in the environment of {python}. Install it (`uv pip install --python {python} vllm`), "
                "or name another interpreter with --python. Nothing was deployed.",
                code="no-server",
            )
        return Program(VLLM, str(script))
    if found := shutil.which("llama-server"):
        return Program(LLAMA_CPP, os.path.abspath(found))
    if _version(python, "llama-cpp-python") is None:
        text = (
            f"There is no llama-server on PATH, and llama-cpp-python is not installed in the environment of {python}. Install one"
        )
        raise Refused(
            f"{text} (`uv pip install --python {python} 'llama-cpp-python[server]'`). Nothing was deployed.", code="no-server"
        )
    return Program(LLAMA_CPP_PYTHON, python)


def _version(python: str, package: str) -> str | None:
    """Installed in that interpreter's environment; nothing of it is imported."""
    try:
        done = subprocess.run([python, "-I", "-c", _VERSION, package], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as err:
        raise Refused(f"{python} could not be asked what is installed in it: {err}.", code="no-such-python") from err
    return done.stdout.strip() if done.returncode == 0 else None


def check_fit(files: ModelFiles, demand: GpuDemand | None, replicas: int, topology: Topology) -> None:
    """Can the model be divided over so many GPUs, are there such, and do its weights fit into them? Raises Refused. Pure."""
    from steelyard.model.timing import Timing
    from steelyard.placement.devices import DevicePlan, Used, make_demand
    from steelyard.placement.shortage import plan_devices

    if demand is None:
        return
    if files.attention_heads is not None and files.attention_heads % demand.count:
        counts = [count for count in range(1, 17) if files.attention_heads % count == 0]
        text = f"The model has {files.attention_heads} attention heads, which {demand.count} GPUs can't share evenly"
        raise Refused(f"{text}: take {', '.join(map(str, counts))}. Nothing was deployed.", code="bad-gpus")
    memory = [demand.memory_min_bytes] * demand.count
    if topology.gpus:
        answer = plan_devices(topology, Used(), make_demand(demand, 0, 0, None, Timing.BEST_EFFORT))
        if not isinstance(answer, DevicePlan):
            raise Refused(f"This machine has no such GPUs: {answer.detail}. Nothing was deployed.", code="gpus-beyond-machine")
        memory = [gpu.memory_bytes for gpu in topology.gpus if gpu.id in answer.gpus]
    if demand.mig_profile is not None or files.weights_bytes is None or not memory:
        return
    known = [each for each in memory if each is not None]
    room = sum(known) * (demand.fraction or 1.0) * MEMORY_SHARE / max(1, replicas)
    if len(known) == len(memory) and files.weights_bytes > room:
        each = f" for each of {replicas} replicas" if replicas > 1 else ""
        text = f"The model's weights are {files.weights_bytes / 1e9:.1f} GB, and {MEMORY_SHARE:.0%} of these GPUs' memory"
        raise Refused(f"{text} is {room / 1e9:.1f} GB{each}: ask for more GPUs. Nothing was deployed.", code="model-too-large")


def render_recipe(program: Program, name: str, model: str, files: ModelFiles, given: Mapping[str, Any], hf_home: Path) -> str:
    """The file's text. Pure but for reading the recipe."""
    demand = parse_gpu_demand(given["gpus"]) if given.get("gpus") else None
    gpu_count = demand.count if demand else 0
    replicas_max = given.get("max_replicas", 1)
    is_local = program.recipe != VLLM or Path(model).expanduser().is_dir()
    waits = ("20m", "loading weights and capturing graphs takes minutes")
    if files.path is None:
        waits = ("2h", "the first start downloads the weights")
    all_layers = "999" if program.recipe == LLAMA_CPP else "-1"
    values = {
        "name": name,
        "program": _yaml(program.path),
        "model": _yaml(str(files.path) if is_local else model),
        "served": _yaml(name if is_local else model),
        "gpus": given.get("gpus", ""),
        "gpu_count": gpu_count,
        "gpu_layers": all_layers if demand else "0",
        "gpu_line": f'  gpu: "{given["gpus"]}"' if demand else '# gpu: "1"',
        "memory_share": f"{MEMORY_SHARE / max(1, replicas_max):.2f}",
        "concurrency": given.get("concurrency", 128 if program.recipe == VLLM else 4),
        "startup_deadline": waits[0],
        "startup_why": waits[1],
        "cpus": f"{given.get('cpus', 2 + 2 * gpu_count):g}",
        "replicas": f"{given.get('min_replicas', 0)}..{replicas_max}",
        "idle_timeout": given.get("idle_timeout", "10m"),
        "weights": _yaml(str(files.path or find_cached(model, hf_home))),
        "hf_home": _yaml(str(hf_home)),
        "cache": _yaml(str(hf_home.parent / "vllm")),
        "public": str(given.get("public", False)).lower(),
    }
    template = resources.files("steelyard.cli").joinpath("recipes", f"{program.recipe}.yaml").read_text()
    text = Template(template).substitute(values)
    return re.sub(r"^(?! *#)(.*?\S) {2,}# ", lambda line: f"{line[1]:<44}# ", text, flags=re.MULTILINE)


def _yaml(text: str) -> str:
    """A word as YAML takes it, in quotes where it must be."""
    return text if _PLAIN.fullmatch(text) else msgspec.json.encode(text).decode()


def _name_of(model: str) -> str:
    """`Qwen/Qwen3-8B` -> qwen3-8b"""
    stem = re.sub(r"\.gguf$", "", os.path.basename(os.path.abspath(model)), flags=re.IGNORECASE)
    return re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-")[:40].strip("-")


def _read(text: str, path: Path) -> Document:
    now = datetime.fromtimestamp(0, UTC)  # functions have no times in them
    return read_documents(text.encode(), path.name, str(path.absolute().parent), now)[0]


def _write(path: Path, text: str, overwrite: bool) -> None:
    """What a person may have edited is never lost without their word."""
    try:
        before = path.read_text()
    except FileNotFoundError:
        before = None
    except (OSError, ValueError) as err:
        raise Refused(f"{path} is there and can't be read ({err}). Nothing was deployed.", code="file-unreadable") from err
    if before == text:
        return
    if before is not None and not overwrite:
        changes = difflib.unified_diff(
            before.splitlines(), text.splitlines(), str(path), "as the recipe writes it", lineterm="", n=0
        )
        say("\n".join(changes))
        raise Refused(
            f"{path} is there already and says something else. Nothing was deployed. `steelyard apply -f {path}` deploys what it "
            "says; --overwrite writes it anew, --name NAME writes another.",
            code="file-exists",
        )
    try:
        write_file(path, text.encode(), 0o644)
    except OSError as err:
        raise Refused(f"{path} can't be written ({err.strerror}). Nothing was deployed.", code="file-unwritable") from err
    say(f"Wrote {path}.")
