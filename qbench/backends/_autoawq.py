"""AWQ quantized by AutoAWQ itself, in an interpreter of its own; what it writes is loaded like gptqmodel's checkpoints.

AutoAWQ 0.2.9, the last release, works with transformers 4.51 and needs no GPU. Files go between the interpreters: a job
there, a checkpoint and the seconds back.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from qbench.backends._calibrated import Calibrated
from qbench.backends._gptqmodel import check_sizes
from qbench.engine.torch.loaded import block_linears
from qbench.errors import QbenchError, UnavailableError
from qbench.model.architecture import rope_of
from qbench.model.calibration import Calibration
from qbench.model.find import read_config
from qbench.model.load import LoadOptions, load_tokenizer, skeleton

JOB = Path(__file__).with_name("_autoawq_job.py")
"""What the other interpreter runs."""

MISSING = ("ImportError", "ModuleNotFoundError")


def write_checkpoint(options: LoadOptions, config: Calibrated, calibration: Calibration | None, out: Path) -> float:
    """Quantize the model into the folder `out`; return the seconds that it took, without loading and saving.

    Raises:
        QbenchError: `config.group_size` does not divide the inputs of a linear, or AutoAWQ does not know the model.
        UnavailableError: the interpreter lacks autoawq.
    """
    assert calibration is not None, "config.calibrates"
    check_sizes(config, block_linears(skeleton(options)), "awq")
    content = read_config(options.folder)
    options.work.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="autoawq-", dir=options.work.resolve()))
    result = folder / "result.json"
    job = {
        "model": str(_linked(options.folder, folder / "model", as_transformers_4(content, config.label))),
        # On a CPU, 16-bit products would take longer, and AutoAWQ's own default is of GPUs.
        "dtype": str(options.dtype if options.device.type == "cuda" else torch.float32).removeprefix("torch."),
        "device": str(options.device),
        "trust_remote_code": options.trust_remote_code,
        "group_size": config.group_size,
        "threads": torch.get_num_threads(),
        "seed": calibration.seed,
        "sequences": calibration.sequences(load_tokenizer(options), content["vocab_size"]),
        "out": str(out.resolve()),
        "result": str(result),
    }
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    _run(config, folder / "job.json", result)
    # The rest of its config.json is in the words of another transformers.
    written = json.loads((out / "config.json").read_text(encoding="utf-8"))
    (out / "config.json").write_text(
        json.dumps({**content, "quantization_config": written["quantization_config"]}, indent=2), encoding="utf-8"
    )
    return float(json.loads(result.read_text(encoding="utf-8"))["quantize_s"])


def as_transformers_4(content: Mapping[str, Any], label: str) -> dict[str, Any]:
    """A config.json in the names of transformers 4, which ignores those of 5.

    Raises:
        QbenchError: layers have rotary embeddings of their own.
    """
    rope = rope_of(content)
    if any(isinstance(value, dict) for value in rope.values()):
        raise QbenchError(f"backends.{label}: AutoAWQ knows one rotary embedding a model; use quantizer: gptqmodel")
    old: dict[str, Any] = {name: rope.pop(name) for name in ("rope_theta", "partial_rotary_factor") if name in rope}
    old["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    dtype = content.get("dtype", content.get("torch_dtype"))
    return {**content, **old, **({"torch_dtype": dtype} if dtype else {})}


def _linked(source: Path, folder: Path, content: Mapping[str, Any]) -> Path:
    """A folder with links to a model's files, but a config.json of its own."""
    folder.mkdir()
    for file in source.iterdir():
        if file.name != "config.json":
            (folder / file.name).symlink_to(file.resolve())
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def _run(config: Calibrated, job: Path, result: Path) -> None:
    assert config.python is not None, "checked with the configuration"
    python = config.python.expanduser()
    # Isolated, and hence without the folder of the script in its path.
    command = [str(python), "-I", "-W", "ignore", str(JOB), str(job)]
    try:
        done = subprocess.run(
            command,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
    except OSError as error:
        raise QbenchError(f"backends.{config.label}.python: {python} does not run: {error.strerror}") from error
    print(done.stderr, end="", file=sys.stderr, flush=True)
    if done.returncode == 0 and result.is_file():
        return
    last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "it gives no reason")
    if last.startswith(MISSING):
        raise UnavailableError(
            f"backends.{config.label}.python: {python} has no working autoawq ({last}); `make env-autoawq` builds an "
            "interpreter that has"
        )
    if done.returncode < 0:
        last = f"its interpreter was ended by {signal.Signals(-done.returncode).name}"
    raise QbenchError(f"backends.{config.label}: AutoAWQ cannot quantize this model ({last}); use quantizer: gptqmodel")
