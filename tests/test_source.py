import io
import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    BertConfig,
    CpmAntConfig,
    PreTrainedConfig,
    RobertaConfig,
    T5Config,
)

from qbench.config import ModelConfig
from qbench.errors import QbenchError
from qbench.model import content, find, random_weights
from tests.support.tiny_llama import save_tiny_llama


def resolve(dtype: str = "bfloat16", seed: int = 0, **model: object) -> Path:
    return find.resolve(ModelConfig.model_validate(model), dtype=dtype, seed=seed, say=lambda _: None)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_folder_with_config_and_safetensors_is_taken_as_it_is(tiny_llama: Path) -> None:
    assert resolve(path=tiny_llama) == tiny_llama


def test_the_demo_model_is_in_the_package() -> None:
    assert (resolve(demo=True) / "model.safetensors").is_file()


def test_folders_that_are_no_models_are_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(QbenchError, match="nowhere is not a folder"):
        resolve(path=tmp_path / "nowhere")
    with pytest.raises(QbenchError, match=r"holds no config\.json"):
        resolve(path=tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(QbenchError, match="add `weights: random`"):
        resolve(path=tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "m.pt", "m.pth", "m.ckpt"])
def test_weights_that_are_pickles_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_bytes(b"")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(QbenchError, match=rf"only {name}, a pickle, which could .* convert it to safetensors"):
        resolve(path=tmp_path)


class Hub:
    """A repository on the hub, which gives what `snapshot_download` is asked for."""

    def __init__(self, folder: Path, names: Sequence[str], index: dict[str, str] | None = None) -> None:
        self.cache, self.fetched = folder, set[str]()
        self._names = names
        self._index = index

    def snapshot_download(
        self, repo: str, *, revision: str | None, allow_patterns: list[str], ignore_patterns: list[str]
    ) -> str:
        found = filter_repo_objects(self._names, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns)
        for name in found:
            self.fetched.add(name)
            (self.cache / name).parent.mkdir(parents=True, exist_ok=True)
            content = {"weight_map": self._index} if name.endswith(".index.json") else {}
            (self.cache / name).write_text(json.dumps(content))
        return str(self.cache)


ONE_FILE = ("config.json", "model.safetensors", "tokenizer.json", "README.md")


@pytest.mark.parametrize(
    ("names", "index", "expected"),
    [
        (ONE_FILE, None, {"config.json", "model.safetensors", "tokenizer.json"}),
        ((*ONE_FILE, "a.bin", "a.pt", "a.ckpt", "a.py"), None, {"config.json", "model.safetensors", "tokenizer.json"}),
        # Weights twice: as their makers wrote them, and in halves of precision.
        (
            (*ONE_FILE, "consolidated.safetensors", "model.fp16.safetensors", "original/model.safetensors",
             "original/params.json"),
            None,
            {"config.json", "model.safetensors", "tokenizer.json"},
        ),
        (
            ("config.json", "model.safetensors.index.json", "model-1.safetensors", "model-2.safetensors",
             "model.safetensors", "consolidated.00.safetensors"),
            {"a": "model-1.safetensors", "b": "model-2.safetensors"},
            {"config.json", "model.safetensors.index.json", "model-1.safetensors", "model-2.safetensors"},
        ),
    ],
)  # fmt: skip
def test_of_the_hub_only_what_is_loaded_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: Sequence[str], index: dict[str, str] | None,
    expected: set[str],
) -> None:  # fmt: skip
    hub = Hub(tmp_path, names, index)
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub.snapshot_download)
    resolve(id="a/b")
    assert hub.fetched == expected


def test_code_is_fetched_only_if_it_may_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(tmp_path, (*ONE_FILE, "modeling.py"))
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub.snapshot_download)
    resolve(id="a/b")
    assert "modeling.py" not in hub.fetched
    resolve(id="a/b", trust_remote_code=True)
    assert "modeling.py" in hub.fetched


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (RobertaConfig, "is an encoder .model_type roberta., no causal language model"),
        (BertConfig, "is an encoder .model_type bert."),
        (BartConfig, "is an encoder and a decoder .model_type bart."),
        (T5Config, "is an encoder and a decoder .model_type t5."),
        (CpmAntConfig, "reads a learned prompt of its own .* .model_type cpmant."),
    ],
)
def test_a_model_that_is_no_plain_decoder_is_refused_before_anything_is_loaded(
    tmp_path: Path, made: type[PreTrainedConfig], words: str
) -> None:
    made().save_pretrained(tmp_path)
    with pytest.raises(QbenchError, match=words):
        resolve(path=tmp_path)


@pytest.mark.parametrize("file", ["config.json", "quantize_config.json", "quant_config.json"])
def test_a_model_that_is_quantized_already_is_refused_before_anything_is_loaded(tmp_path: Path, file: str) -> None:
    folder = save_tiny_llama(tmp_path / "m")
    content = json.loads((folder / "config.json").read_text())
    scheme = {"quant_method": "awq", "bits": 4}
    written = content | {"quantization_config": scheme} if file == "config.json" else scheme
    (folder / file).write_text(json.dumps(written))
    with pytest.raises(QbenchError, match=r"is quantized already.*give the 16-bit model.*checkpoint:"):
        resolve(path=folder)


def test_a_model_whose_config_names_code_does_not_run_it(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither in making random weights for it, nor when somebody says yes to whatever is asked."""
    shape = json.loads((tiny_llama / "config.json").read_text())
    names = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    (tmp_path / "config.json").write_text(json.dumps(shape | {"model_type": "its-own", "auto_map": names}))
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(QbenchError, match="random weights could not be made"):
        resolve(path=tmp_path, weights="random")
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 4))
    with pytest.raises(ValueError, match="code"):
        random_weights.write(tmp_path, torch.bfloat16, seed=0)
    assert not (tmp_path / "ran").exists()


def test_a_hub_that_cannot_be_reached_is_said_with_the_remedy() -> None:
    with pytest.raises(QbenchError, match=r"model\.id: nobody/nothing is not in the local cache .* model\.path"):
        resolve(id="nobody/nothing")


def test_a_name_that_is_no_hub_id_is_refused() -> None:
    with pytest.raises(QbenchError, match=r"model\.id: the hub has no a/b/c"):
        resolve(id="a/b/c")


def test_an_unknown_shape_is_refused_with_the_nearest() -> None:
    with pytest.raises(QbenchError, match=r"unknown shape 'llama-8b'; did you mean llama-3-8b\?"):
        resolve(shape="llama-8b", weights="random")


def test_a_damaged_config_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(QbenchError, match=r"config\.json: not a readable config\.json"):
        resolve(path=tmp_path, weights="random")


def test_random_weights_are_an_ordinary_checkpoint_made_once(tiny_llama: Path, cache: Path, tmp_path: Path) -> None:
    folder = resolve(path=tiny_llama, weights="random", seed=3)
    assert folder.is_relative_to(cache)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", local_files_only=True)
    assert model.dtype == torch.bfloat16
    weight = model.get_parameter("model.layers.1.mlp.gate_proj.weight").float()
    assert weight.std().item() == pytest.approx(model.config.initializer_range, rel=0.02)
    assert (model.get_parameter("model.norm.weight") == 1).all()
    written = (folder / "model-00001.safetensors").stat().st_mtime_ns
    assert resolve(path=tiny_llama, weights="random", seed=3) == folder
    assert (folder / "model-00001.safetensors").stat().st_mtime_ns == written
    # They follow their seed, in whatever process they are drawn.
    for seed in (3, 4):
        other = tmp_path / str(seed)
        other.mkdir()
        shutil.copy(tiny_llama / "config.json", other)
        random_weights.write(other, torch.bfloat16, seed)
        drawn, found = (
            load_file(one / "model-00001.safetensors")["model.layers.0.mlp.up_proj.weight"] for one in (other, folder)
        )
        assert torch.equal(drawn, found) == (seed == 3)


def test_random_weights_of_a_gpu_are_kept_apart_from_those_of_a_cpu(
    tiny_llama: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def make(command: list[str], **how: object) -> "subprocess.CompletedProcess[str]":
        asked.append(command[-1])
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(find.subprocess, "run", make)
    model = ModelConfig(path=tiny_llama, weights="random")
    places = {find.resolve(model, dtype="bfloat16", seed=1, say=str, device=place) for place in ("cpu", "cuda")}
    assert (len(places), asked) == (2, ["cpu", "cuda"])


def test_a_shape_known_by_its_hub_id_needs_no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ModelConfig(id="meta-llama/Meta-Llama-3-8B-Instruct", weights="random")
    monkeypatch.setattr(find, "_random_weights", lambda shape, *_: shape)
    assert find.resolve(asked, dtype="bfloat16", seed=0, say=print)["hidden_size"] == 4096  # type: ignore[index]


def test_a_cache_that_cannot_be_written_is_said(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("QBENCH_CACHE", str(tmp_path / "file"))
    with pytest.raises(QbenchError, match="set QBENCH_CACHE to a writable folder"):
        resolve(path=tiny_llama, weights="random")


def test_the_fingerprint_follows_the_model(tmp_path: Path) -> None:
    folder = save_tiny_llama(tmp_path / "m")
    before = content.fingerprint(folder)
    assert content.fingerprint(folder) == before
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rope_theta": 7.0}))
    assert content.fingerprint(folder) != before
