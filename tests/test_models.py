from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from qbench.backends import fp16, int4
from qbench.backends.fp16 import FP16
from qbench.backends.int4 import Int4
from qbench.errors import QbenchError, describe_fault
from qbench.model.load import LoadOptions, check_placed
from tests.support.tiny_llama import logits, options


@pytest.mark.parametrize(("spread", "expected"), [(False, {"": torch.device("cpu")}), (True, "auto")])
def test_the_device_map_reaches_transformers_and_the_model_is_the_same(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spread: bool, expected: object
) -> None:
    given: list[object] = []
    load = AutoModelForCausalLM.from_pretrained

    def spy(*args: Any, **how: Any) -> Any:
        given.append(how["device_map"])
        return load(*args, **how)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", spy)
    alone = logits(fp16.load(options(tiny_llama, tmp_path), FP16(), None))
    given.clear()
    loaded = fp16.load(replace(options(tiny_llama, tmp_path), device_map_auto=spread), FP16(), None)
    assert given == [expected]
    assert loaded.devices == (torch.device("cpu"),)
    assert torch.equal(logits(loaded), alone)


def test_a_part_that_is_left_off_the_gpus_is_out_of_memory(tmp_path: Path) -> None:
    on_gpus = LoadOptions(tmp_path, torch.device("cuda:0"), torch.float16, tmp_path, device_map_auto=True)
    places: dict[str, object] = {"model.layers.0": 0, "model.layers.1": 1}
    check_placed(SimpleNamespace(hf_device_map=places), on_gpus)  # type: ignore[arg-type]
    with pytest.raises(QbenchError, match=r"out of memory: 2 parts .* \(lm_head and on\)") as caught:
        check_placed(SimpleNamespace(hf_device_map=places | {"model.norm": "cpu", "lm_head": "disk"}), on_gpus)  # type: ignore[arg-type]
    assert describe_fault(caught.value)[0] == "oom"


def test_int4_says_that_it_loads_onto_one_device(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(QbenchError, match=r"backends\.int4: int4 loads onto one device; use device_map: none"):
        int4.load(replace(options(tiny_llama, tmp_path), device_map_auto=True), Int4(label="int4"), None)
