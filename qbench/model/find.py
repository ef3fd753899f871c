"""Finding a model's files before anything is measured: hub download, folder check, random weights.

Runs in the parent process, without torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from qbench import demo
from qbench.config import ModelConfig, RunConfig
from qbench.config import resolve as auto
from qbench.config.target import DeviceType
from qbench.errors import QbenchError
from qbench.model.content import cache_folder
from qbench.text import suggestion

SHAPES = Path(__file__).parent / "shapes"
"""A shape is a config.json without weights: `<name>.json`."""

SMALL_FILES = ("*.json", "*.model", "merges.txt", "vocab.txt", "*.jinja")
MODEL_FILES = (*SMALL_FILES, "*.safetensors")
"""What is fetched from the hub; never pickles, and Python only where it may run."""

INDEX, SINGLE_FILE = "model.safetensors.index.json", "model.safetensors"
"""Where transformers looks for weights: the shards that the index names, or one file."""

OLD_SCHEMES = ("quantize_config.json", "quant_config.json")
"""Where AutoGPTQ and AutoAWQ once said how a checkpoint was quantized."""

IN_FOLDERS = ["*/*.json", "*/*.safetensors", "*/*.model"]
"""What other loaders read: weights as they were before their conversion (`original/`), other formats."""

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
"""Formats that can run code when they are read. None of them is."""


CONTEXT_NAMES = ("n_positions", "max_position_embeddings", "n_ctx")
"""Where configurations keep the length of the context, in the order of lm-evaluation-harness."""


def context_length(content: Mapping[str, Any]) -> int | None:
    """The positions that a config.json allows; None where it sets no limit."""
    parts = [part for part in (content.get("text_config"), content) if isinstance(part, dict)]
    found = (part.get(name) for part in parts for name in CONTEXT_NAMES)
    return next((length for length in found if isinstance(length, int) and length > 0), None)


def shapes() -> dict[str, Path]:
    """The shipped shapes by name."""
    return {path.stem: path for path in sorted(SHAPES.glob("*.json"))}


def resolve(
    config: ModelConfig, *, dtype: str, seed: int, say: Callable[[str], None], device: DeviceType = "cpu"
) -> Path:
    """The local folder with everything the model needs; fetches or makes what is missing.

    Args:
        dtype: of random weights: float16, bfloat16 or float32.
        say: told in one line what takes long.
        device: where random weights are drawn; a GPU takes seconds for what takes one thread of a CPU minutes.

    Raises:
        QbenchError: there is no such model, or it cannot be fetched.
    """
    if config.weights == "random":
        return _random_weights(_shape_config(config), dtype, seed, device, say)
    if config.demo:
        return demo.MODEL_DIR
    if config.id:
        say(f"fetching {config.id} from the hub (or its local cache)")
        code = ("*.py",) if config.trust_remote_code else ()
        folder = _fetch(config.id, config.revision, (*SMALL_FILES, *code))
        folder = _fetch(config.id, config.revision, _weight_files(folder))
    else:
        assert config.path is not None
        folder = config.path.expanduser().resolve()
    check_folder(folder)
    return folder


def _weight_files(folder: Path) -> tuple[str, ...]:
    """The files of weights that transformers loads: some repositories hold the same weights twice, by other names."""
    index = folder / INDEX
    if not index.is_file():
        return (SINGLE_FILE,)
    return tuple(sorted(set(read_json(index)["weight_map"].values())))


def find_model(config: RunConfig, *, cuda: bool, say: Callable[[str], None]) -> Path:
    """The local folder of a run's model; random weights are made in the dtype that it computes in.

    Args:
        cuda: whether the machine has a GPU.

    Raises:
        QbenchError: see `resolve`.
    """
    device = auto.device_type(auto.device(config.device, cuda=cuda))
    dtype = auto.dtype(config.dtype, device)
    return resolve(config.model, dtype=dtype, seed=config.seed, say=say, device=device)


def check_folder(folder: Path) -> None:
    """Refuse a folder that is no model that can be loaded.

    Raises:
        QbenchError: no folder, no config.json, or no safetensors in it.
    """
    if not folder.is_dir():
        raise QbenchError(f"model.path: {folder} is not a folder")
    if not (folder / "config.json").is_file():
        raise QbenchError(f"model.path: {folder} holds no config.json, so it is not a model's folder")
    old = next((folder / name for name in OLD_SCHEMES if (folder / name).is_file()), None)
    check_config(read_config(folder) | ({"quantization_config": read_json(old)} if old else {}), str(folder))
    check_weights(folder, "model.path", "for memory and speed only, add `weights: random`")


ENCODERS = frozenset({
    *("bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert"),
    *("rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta", "xlm-roberta-xl", "xmod"),
})  # fmt: skip
"""Values of `model_type` whose tokens also attend to later ones. transformers loads them as causal models, too."""

HALVES = frozenset({
    *("bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "marian", "mbart", "musicgen", "musicgen_melody"),
    *("mvp", "pegasus", "plbart", "prophetnet", "trocr", "whisper"),
})  # fmt: skip
"""Those whose decoder was trained to attend to an encoder, and is loaded without it."""

PROMPTED = frozenset({"cpmant"})
"""Those that put a learned prompt of their own before the tokens, which lengths and memory do not count."""


def check_config(content: Mapping[str, Any], name: str) -> None:
    """Refuse a model of whose config.json it follows that no backend would measure what its row says.

    Raises:
        QbenchError: it is quantized already, an encoder, has an encoder beside its decoder, or a prompt of its own.
    """
    kind = content.get("model_type")
    if kind in ENCODERS or kind in HALVES or content.get("is_encoder_decoder"):
        what = "an encoder" if kind in ENCODERS else "an encoder and a decoder"
        raise QbenchError(
            f"model: {name} is {what} (model_type {kind}), no causal language model; its tokens are not predicted "
            "from those before them alone. Give a decoder-only model, such as Llama's or Qwen's"
        )
    if kind in PROMPTED:
        raise QbenchError(
            f"model: {name} reads a learned prompt of its own before the tokens it is given (model_type {kind}), so "
            "that lengths would not be what rows say. Give a model without one, such as Llama's or Qwen's"
        )
    scheme = content.get("quantization_config")
    if scheme is not None:
        method = scheme.get("quant_method") if isinstance(scheme, dict) else None
        raise QbenchError(
            f"model: {name} is quantized already{f' ({method})' if method else ''}; give the 16-bit model, and a "
            "checkpoint that was made of it as `checkpoint:` of its awq, gptq or int4 cell"
        )


def check_weights(folder: Path, key: str, remedy: str) -> None:
    """Refuse a folder without weights in safetensors; `key` names it in the configuration.

    Raises:
        QbenchError: there are pickles only, or no weights at all, for which `remedy` is told.
    """
    # An adapter is no model, and transformers would take the pickle beside it.
    if any(not path.name.startswith("adapter") for path in folder.glob("*.safetensors")):
        return
    pickled = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    why = (
        f"only {pickled[0]}, a pickle, which could run code when it is read; convert it to safetensors (load it in a "
        "place that you can lose, with transformers' from_pretrained, and save_pretrained it)"
        if pickled
        else f"its weights are missing; {remedy}"
    )
    raise QbenchError(f"{key}: {folder} holds no safetensors: {why}")


def known_config(config: ModelConfig) -> dict[str, Any] | None:
    """config.json of a model as far as it is on this machine; None for a hub id of which nothing is here.

    That is the demo model's, a shipped shape's, a folder's, or what the hub's client has kept of a download.

    Raises:
        QbenchError: no such shape, or a config.json that cannot be read.
    """
    if config.demo:
        return read_json(demo.MODEL_DIR / "config.json")
    found = _local_config(config)
    return found if found or not config.id else _kept_by_hub(config.id, config.revision)


def _local_config(config: ModelConfig) -> dict[str, Any] | None:
    """config.json of a shipped shape, of a folder, or of a hub id (shipped shapes know theirs); None for another id."""
    known = shapes()
    if config.shape:
        if config.shape not in known:
            hint = suggestion(config.shape, known)
            raise QbenchError(f"model.shape: unknown shape {config.shape!r}{hint} (valid: {', '.join(known)})")
        return read_json(known[config.shape])
    if config.path:
        return read_json(config.path.expanduser() / "config.json")
    contents = (read_json(path) for path in known.values())
    return next((content for content in contents if content.get("_name_or_path") == config.id), None)


def _kept_by_hub(repo: str, revision: str | None) -> dict[str, Any] | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        kept = try_to_load_from_cache(repo, "config.json", revision=revision)
    except HFValidationError as error:
        raise QbenchError(f"model.id: {repo} is no name of a repository, which is owner/name") from error
    return read_json(Path(kept)) if isinstance(kept, str) else None


def _shape_config(config: ModelConfig) -> dict[str, Any]:
    """config.json for random weights, from the hub if need be."""
    found = _local_config(config)
    if found is None:
        assert config.id is not None
        found = read_json(_fetch(config.id, config.revision, ("config.json",)) / "config.json")
    return found


def read_config(folder: Path) -> dict[str, Any]:
    """A model's config.json.

    Raises:
        QbenchError: it cannot be read.
    """
    return read_json(folder / "config.json")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file beside a model's weights.

    Raises:
        QbenchError: it cannot be read.
    """
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise QbenchError(f"{path}: not a readable config.json ({type(error).__name__})") from error
    return data


def _random_weights(
    shape: dict[str, Any], dtype: str, seed: int, device: DeviceType, say: Callable[[str], None]
) -> Path:
    """A folder of random weights for a shape, made once and kept by content."""
    text = json.dumps(shape, indent=2, sort_keys=True)
    drawn = "" if device == "cpu" else f" {device}"
    key = hashlib.sha256(f"{text} {dtype} {seed}{drawn}".encode()).hexdigest()[:16]
    folder = cache_folder() / "random" / key
    if folder.is_dir():
        return folder
    say(f"making random weights once, in {folder}")
    partial = folder.with_name(f"{key}.partial-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        (partial / "config.json").write_text(text, encoding="utf-8")
        command = [sys.executable, "-m", "qbench.model.random_weights", str(partial), dtype, str(seed), device]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise QbenchError(f"random weights could not be made in {folder.parent}: {last}")
        partial.rename(folder)
    except OSError as error:
        reason = error.strerror or error
        raise QbenchError(f"{folder.parent}: {reason}; set QBENCH_CACHE to a writable folder") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _fetch(repo: str, revision: str | None, patterns: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        return Path(
            snapshot_download(repo, revision=revision, allow_patterns=list(patterns), ignore_patterns=IN_FOLDERS)
        )
    except GatedRepoError as error:
        raise QbenchError(
            f"model.id: {repo} is gated; accept its licence on its page and log in with `hf auth login`"
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise QbenchError(f"model.id: the hub has no {repo}, or it is private; check the name, or log in") from error
    except RevisionNotFoundError as error:
        raise QbenchError(f"model.revision: {repo} has no revision {revision!r}") from error
    except Exception as error:
        raise QbenchError(
            f"model.id: {repo} is not in the local cache and the hub cannot be reached ({type(error).__name__}); "
            "check the connection, or give a downloaded folder as model.path"
        ) from error
