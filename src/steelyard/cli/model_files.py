"""What do the files of a language model say before anybody loads it? How large its weights are, and how many attention heads it
has, which bounds over how many GPUs it can be divided.

Reads configurations and sizes, never weights. What a file does not tell stays unknown (None).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from steelyard.errors import Refused

GGUF_MAGIC = b"GGUF"
#: larger ones are no configuration
_CONFIG_MAX = 64 << 20


class ModelFiles(NamedTuple):
    #: the folder or file; None: not on this machine yet
    path: Path | None = None
    weights_bytes: int | None = None
    attention_heads: int | None = None


def find_model(model: str, hf_home: Path) -> ModelFiles:
    """A folder of this machine, or `owner/name` as it lies in the cache of Hugging Face. Raises Refused for what is neither."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        found = read_folder(folder.absolute())
        if found.weights_bytes is None:
            raise Refused(f"{model} holds no weights (*.safetensors, *.bin). Nothing was deployed.", code="bad-model")
        return found
    if model.startswith(("/", ".", "~")) or model.count("/") != 1:
        text = f"{model!r} is neither a folder of this machine nor a model's name such as Qwen/Qwen3-8B. Nothing was deployed."
        raise Refused(text, code="bad-model")
    snapshots = find_cached(model, hf_home) / "snapshots"
    newest = max(snapshots.glob("*/config.json"), key=lambda file: file.lstat().st_mtime, default=None)
    return ModelFiles() if newest is None else read_folder(newest.parent)


def find_cached(model: str, hf_home: Path) -> Path:
    """Where the files of `owner/name` are, or will be."""
    return hf_home / "hub" / f"models--{model.replace('/', '--')}"


def read_folder(folder: Path) -> ModelFiles:
    config = _read_json(folder / "config.json")
    # of a model for text and images, the part for text has the heads
    text = config.get("text_config", config)
    heads = text.get("num_attention_heads") if isinstance(text, dict) else None
    return ModelFiles(folder, _weights_bytes(folder), heads if isinstance(heads, int) and heads > 0 else None)


def read_gguf(model: str) -> ModelFiles:
    """Raises Refused for what is no GGUF file."""
    file = Path(model).expanduser()
    try:
        with file.open("rb") as opened:
            magic = opened.read(len(GGUF_MAGIC))
        size = file.stat().st_size
    except OSError as err:
        raise Refused(f"{model} can't be read ({err.strerror}). Nothing was deployed.", code="bad-model") from err
    if magic != GGUF_MAGIC:
        raise Refused(f"{model} is no GGUF file, which is what llama.cpp reads. Nothing was deployed.", code="bad-model")
    return ModelFiles(file.absolute(), size)


def _weights_bytes(folder: Path) -> int | None:
    """As the index of the safetensors tells, else by the sizes of the files."""
    metadata = _read_json(folder / "model.safetensors.index.json").get("metadata")
    told = metadata.get("total_size") if isinstance(metadata, dict) else None
    if isinstance(told, int) and told > 0:
        return told
    for pattern in ("*.safetensors", "*.bin"):
        sizes = [file.stat().st_size for file in folder.glob(pattern) if file.exists()]
        if sizes:
            return sum(sizes)
    return None


def _read_json(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > _CONFIG_MAX:
            return {}
        found = json.loads(file.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as err:
        raise Refused(f"{file} can't be read: {err}. Nothing was deployed.", code="bad-model") from err
    return found if isinstance(found, dict) else {}
