"""AWQ by AutoAWQ: an interpreter of its own quantizes, the worker loads and measures."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from qbench.backends import _autoawq, awq
from qbench.backends.awq import AWQ
from qbench.errors import QbenchError
from qbench.run.fingerprint import checkpoint_facts
from tests.support.frames import read_frames
from tests.support.runs import config as run_config
from tests.support.runs import interpreter, run
from tests.support.tiny_llama import CALIBRATION, LINEARS, TOKENS, logits, options, relative_error

AUTOAWQ = Path(__file__).parents[1] / "build" / "autoawq" / "bin" / "python"


def cell(python: object, **more: object) -> dict[str, object]:
    return {"kind": "awq", "quantizer": "autoawq", "python": str(python), **more}


def test_it_needs_an_interpreter() -> None:
    with pytest.raises(ValidationError, match=r"make env-autoawq.*python: build/autoawq/bin/python"):
        AWQ.model_validate({"kind": "awq", "quantizer": "autoawq"})


def test_without_autoawq_there_the_cell_is_unavailable(tiny_llama: Path, words_file: str, tmp_path: Path) -> None:
    """This interpreter lacks it. The cell itself runs in this one, whatever `python` is."""
    settings = run_config(
        tiny_llama, [cell(sys.executable)], calibration={"text": words_file, "samples": 2, "length": 32}
    )
    folder, ok, _ = run(settings, tmp_path)
    (row,) = read_frames(folder).cells.to_dict("records")
    assert (ok, row["status"]) == (False, "unavailable")
    assert "has no working autoawq (ModuleNotFoundError: No module named 'awq')" in row["error"]
    assert "`make env-autoawq` builds" in row["error"]


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("echo 'Traceback:' >&2; echo 'TypeError: mamba is unknown' >&2; exit 1", r"\(TypeError: mamba is unknown\)"),
        ("kill -KILL $$", r"its interpreter was ended by SIGKILL"),
        ("exit 0", r"it gives no reason"),
    ],
)
def test_what_goes_wrong_there_is_said(script: str, problem: str, tiny_llama: Path, tmp_path: Path) -> None:
    python = interpreter(tmp_path, script)
    with pytest.raises(QbenchError, match=problem):
        awq.load(options(tiny_llama, tmp_path), AWQ.model_validate(cell(python)), CALIBRATION)


def test_a_file_that_is_no_interpreter_is_named(tiny_llama: Path, tmp_path: Path) -> None:
    (tmp_path / "python").write_text("nothing")
    with pytest.raises(QbenchError, match=r"python: .*/python does not run: Permission denied"):
        awq.load(options(tiny_llama, tmp_path), AWQ.model_validate(cell(tmp_path / "python")), CALIBRATION)


def test_the_checkpoints_key_has_the_quantizer_and_its_version(tiny_llama: Path, tmp_path: Path) -> None:
    def facts(backend: dict[str, object]) -> dict[str, Any]:
        config = run_config(tiny_llama, [backend])
        return checkpoint_facts(config, config.backends[0], "model", device="cpu", dtype="float32")

    def environment(version: str) -> Path:
        packages = tmp_path / version / "lib" / "python3.11" / "site-packages" / f"autoawq-{version}.dist-info"
        packages.mkdir(parents=True)
        (packages / "METADATA").write_text(f"Metadata-Version: 2.1\nName: autoawq\nVersion: {version}\n")
        return tmp_path / version / "bin" / "python"

    old, new = facts(cell(environment("0.2.8"))), facts(cell(environment("0.2.9")))
    assert {name for name in old if old[name] != new[name]} == {"quantizer.autoawq"}
    assert facts({"kind": "awq"})["quantizer"] == "gptqmodel"


def test_a_config_of_transformers_5_gets_the_names_of_4() -> None:
    """Of Llama 3.1, as its config.json on the hub has them."""
    scaling = {
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    }  # fmt: skip
    new = {"model_type": "llama", "dtype": "bfloat16", "rope_parameters": {"rope_theta": 500000.0, **scaling}}
    found = _autoawq.as_transformers_4(new, "awq")
    assert (found["rope_theta"], found["rope_scaling"], found["torch_dtype"]) == (500000.0, scaling, "bfloat16")
    plain = _autoawq.as_transformers_4({"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}, "awq")
    assert (plain["rope_theta"], plain["rope_scaling"]) == (1e6, None)
    with pytest.raises(QbenchError, match="one rotary embedding a model"):
        _autoawq.as_transformers_4({"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}, "awq")


@pytest.mark.long
def test_autoawq_writes_what_the_worker_measures(tiny_llama: Path, tmp_path: Path) -> None:
    if not AUTOAWQ.is_file():
        pytest.skip("autoawq: make env-autoawq")
    given = options(tiny_llama, tmp_path, torch.float32)
    found = awq.load(given, AWQ.model_validate(cell(AUTOAWQ)), CALIBRATION)
    theirs = awq.load(options(tiny_llama, tmp_path / "gptqmodel", torch.float32), AWQ(), CALIBRATION)
    assert set(found.quantized) == set(LINEARS)
    assert (found.kernel, found.linear_bytes) == (theirs.kernel, theirs.linear_bytes)
    assert found.quantize_s is not None
    with torch.inference_mode():
        from transformers import AutoModelForCausalLM

        reference = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)(TOKENS).logits
    assert 0 < relative_error(logits(found), reference) < 1.1 * relative_error(logits(theirs), reference)
