"""Checkpoints against quantizing while loading, bit for bit, and against everything that can happen to their files."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from qbench.backends import int4
from qbench.backends.int4 import Int4, checkpoint
from qbench.backends.int4.manifest import Manifest, read_manifest
from qbench.backends.int4.shards import INDEX
from qbench.backends.int4.stream import quantizer
from qbench.engine.torch.loaded import LoadedModel
from qbench.errors import QbenchError
from qbench.int4 import QuantizedTensor, quantize
from qbench.model.content import sha256
from tests.support.runs import config, run
from tests.support.tiny_llama import save_tiny_llama
from tests.support.tiny_variants import LARGEST_TENSOR, assert_same, llama, neox, options, qwen2, save

PLAIN = Int4(kind="int4", search="none", group_size=32)


def write(model: Path, out: Path, settings: Int4 = PLAIN, dtype: torch.dtype = torch.bfloat16) -> float:
    return checkpoint.write(options(model, dtype), settings, quantizer(settings), out)


def load(model: Path, settings: Int4, dtype: torch.dtype = torch.bfloat16) -> LoadedModel:
    return int4.load(options(model, dtype), settings, None)


def from_checkpoint(folder: Path, **more: object) -> Int4:
    return Int4.model_validate({"kind": "int4", "checkpoint": folder, **more})


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(llama(), tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of several shards, never changed."""
    folder = tmp_path_factory.mktemp("whole") / "made"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qbench.backends.int4.folder.SHARD_BYTES", 20_000)
        write(source, folder)
    return folder


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    """The checkpoint, to be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "copy"))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("make", [llama, qwen2, neox])
@pytest.mark.parametrize("lm_head", ["16bit", "int8"])
def test_it_is_what_quantizing_while_loading_gives(tmp_path: Path, make, tied: bool, lm_head: str) -> None:
    save(make(tied=tied), tmp_path / "source")
    bits = write(tmp_path / "source", tmp_path / "out")
    found = load(tmp_path / "source", from_checkpoint(tmp_path / "out", lm_head=lm_head))
    expected = load(tmp_path / "source", PLAIN.model_copy(update={"lm_head": lm_head}))
    if lm_head == "16bit":
        assert_same(found.model, expected.model)
    else:
        assert torch.equal(found.model.lm_head.weight(), expected.model.lm_head.weight())
    assert found.quantize_s is None
    assert found.quantized == found.expected == expected.quantized
    assert found.effective_bits_per_weight == bits == 5
    assert found.lm_head_bits == expected.lm_head_bits


@hypothesis_settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    bits=st.sampled_from([3, 4, 8]),
    group_size=st.sampled_from([-1, 0, 1, 31, 48, 64, 1000]),
    symmetric=st.booleans(),
    search=st.sampled_from(["none", "mse"]),
)
def test_every_setting_comes_back_bit_for_bit(source: Path, tmp_path: Path, **scheme) -> None:
    settings = Int4(kind="int4", **scheme)
    made: dict[str, QuantizedTensor] = {}

    def quantize_one(name: str, weight: torch.Tensor) -> QuantizedTensor:
        made[name.removesuffix(".weight")] = quantize(weight, name=name, **scheme)
        return made[name.removesuffix(".weight")]

    checkpoint.write(options(source), settings, quantize_one, tmp_path / "out")
    _, found = checkpoint.load(options(source), tmp_path / "out")
    assert found.keys() == made.keys()
    for name, q in made.items():
        assert (found[name].shape, found[name].bits, found[name].group_size) == (q.shape, q.bits, q.group_size)
        assert found[name].tensors().keys() == q.tensors().keys()
        for part, tensor in q.tensors().items():
            assert found[name].tensors()[part].dtype == tensor.dtype
            assert torch.equal(found[name].tensors()[part], tensor)
    resolved = from_checkpoint(tmp_path / "out").resolved()
    assert {key: getattr(resolved, key) for key in scheme} == scheme


def test_the_folder_is_a_hugging_face_one(source: Path, whole: Path) -> None:
    content = json.loads((whole / "config.json").read_text())
    manifest = content.pop("quantization_config")
    assert content == json.loads((source / "config.json").read_text())
    assert {key: manifest[key] for key in ("quant_method", "format_version", "bits", "group_size", "symmetric")} == {
        "quant_method": "qbench_int4", "format_version": 1, "bits": 4, "group_size": 32, "symmetric": False,
    }  # fmt: skip
    index = json.loads((whole / INDEX).read_text())["weight_map"]
    held = {name: file.name for file in whole.glob("*.safetensors") for name in load_file(file)}
    assert held == index
    assert set(index.values()) == set(manifest["shards"])
    expected = load_file(source / "model.safetensors")
    linear = "model.layers.0.mlp.down_proj"
    assert {f"{linear}.qweight", f"{linear}.scales", f"{linear}.zeros"} < set(index)
    assert f"{linear}.weight" not in index
    head = load_file(whole / index["lm_head.weight"])["lm_head.weight"]
    assert torch.equal(head, expected["lm_head.weight"])


def test_shards_are_written_as_they_fill(whole: Path) -> None:
    files = sorted(whole.glob("*.safetensors"))
    assert len(files) > 3
    for file in files:
        tensors = load_file(file)
        assert len(tensors) == 1 or sum(tensor.nbytes for tensor in tensors.values()) <= 20_000


def test_tokenizer_files_come_along_and_all_may_read_them(tmp_path: Path) -> None:
    source = save_tiny_llama(tmp_path / "source")
    write(source, tmp_path / "out")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()
    modes = {stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "out").iterdir()}
    assert len(modes) == 1


def test_another_dtype_casts_all_but_the_quantized_weights(source: Path, whole: Path) -> None:
    loaded = load(source, from_checkpoint(whole), torch.float32)
    assert loaded.model.dtype == loaded.model.lm_head.weight.dtype == torch.float32
    _, weights = checkpoint.load(options(source, torch.float32), whole)
    assert {q.scales.dtype for q in weights.values()} == {torch.bfloat16}


def test_settings_are_those_of_the_checkpoint(whole: Path) -> None:
    assert from_checkpoint(whole).resolved().group_size == 32
    assert from_checkpoint(whole, group_size=32, search="none").resolved().search == "none"
    assert PLAIN.resolved() == PLAIN
    for key, value in (("bits", 8), ("group_size", 64), ("symmetric", True), ("search", "mse")):
        with pytest.raises(QbenchError, match=rf"backends\.int4: {key} {value} is asked for, .*; remove `{key}:`"):
            from_checkpoint(whole, **{key: value}).resolved()


def test_a_run_says_how_its_checkpoint_was_quantized(source: Path, whole: Path, tmp_path: Path) -> None:
    cells = [
        {"kind": "int4", "checkpoint": whole},
        {"kind": "int4", "label": "now", "search": "none", "group_size": 32},
    ]
    folder, ok, _ = run(config(source, cells, measure={}), tmp_path)
    assert ok
    rows = pd.read_csv(folder / "cells.csv").set_index("label")
    assert list(rows["group_size"]) == [32, 32]
    assert list(rows["effective_bits_per_weight"]) == [5, 5]
    assert list(rows["quantize_s"].isna()) == [True, False]
    with pytest.raises(QbenchError, match="group_size 64 is asked for"):
        run(config(source, [{**cells[0], "group_size": 64}], name="s", measure={}), tmp_path)
    assert not (tmp_path / "s").exists()


@hypothesis_settings(deadline=None)
@given(st.data())
def test_any_changed_byte_is_noticed(source: Path, whole: Path, tmp_path_factory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("changed") / "copy"
    shutil.copytree(whole, folder)
    victim = data.draw(st.sampled_from(sorted(folder.glob("*.safetensors"))))
    content = bytearray(victim.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    victim.write_bytes(content)
    with pytest.raises(QbenchError, match=rf"{victim.name}: is damaged, .* quantize the model again"):
        checkpoint.load(options(source), folder)


def test_truncated_and_missing_shards_are_refused(source: Path, copy: Path) -> None:
    victim = sorted(copy.glob("*.safetensors"))[1]
    victim.write_bytes(victim.read_bytes()[:-1])
    with pytest.raises(QbenchError, match=rf"{victim.name}: is damaged"):
        checkpoint.load(options(source), copy)
    victim.unlink()
    with pytest.raises(QbenchError, match=rf"{victim.name}: this shard cannot be read .* `qbench quantize`"):
        checkpoint.load(options(source), copy)


def change_manifest(folder: Path, **fields: object) -> None:
    file = folder / "config.json"
    content = json.loads(file.read_text())
    content["quantization_config"] |= fields
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"quant_method": "gptq"}, r"holds weights of quant_method gptq; .* \(qbench_int4\)"),
        ({"quant_method": None}, "holds weights that are not quantized"),
        ({"format_version": 2}, r"format_version 2 is newer than this qbench reads \(1\); update qbench"),
        ({"bits": 5, "search": "no"}, r"is damaged \(bits, search\); quantize the model again"),
        ({"shards": {"../x": "0"}}, r"is damaged \(shards"),
        ({"bits": 8}, r"qweight has shape .* where config\.json asks for"),
    ],
)
def test_another_manifest_is_refused(source: Path, copy: Path, fields: dict[str, object], words: str) -> None:
    change_manifest(copy, **fields)
    with pytest.raises(QbenchError, match=words) as caught:
        checkpoint.load(options(source), copy)
    assert str(copy) in str(caught.value)


def test_a_folder_that_is_no_checkpoint_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(QbenchError, match=r"no folder .*nowhere; `qbench quantize CONFIG --out"):
        read_manifest(tmp_path / "nowhere")
    with pytest.raises(QbenchError, match=r"config\.json: missing or damaged"):
        read_manifest(tmp_path)
    with pytest.raises(QbenchError, match="holds weights that are not quantized"):
        read_manifest(source)
    (tmp_path / "config.json").write_text('["quantization_config"]')
    with pytest.raises(QbenchError, match=r"config\.json: missing or damaged"):
        read_manifest(tmp_path)


def test_a_checkpoint_of_another_model_is_refused(whole: Path, tmp_path: Path) -> None:
    other = save(llama(tied=True), tmp_path / "other")
    with pytest.raises(QbenchError, match=f"{whole} was made from another model than {other}"):
        checkpoint.load(options(other), whole)


def test_a_checkpoint_is_no_model_to_quantize(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(QbenchError, match=r"already \(qbench_int4\); give the 16-bit model, and .* `checkpoint:`"):
        write(whole, tmp_path / "out")


@pytest.mark.parametrize("existing", [True, False])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_what_is_not_finished_leaves_no_trace(
    source: Path, whole: Path, tmp_path: Path, existing: bool, error: BaseException
) -> None:
    out = tmp_path / "out"
    if existing:
        shutil.copytree(whole, out)
    calls = []

    def quantize_one(name: str, weight: torch.Tensor) -> QuantizedTensor:
        calls.append(name)
        if len(calls) == 5:
            raise error
        return quantize(weight)

    with pytest.raises((KeyboardInterrupt, QbenchError)) as caught:
        checkpoint.write(options(source), PLAIN, quantize_one, out)
    if isinstance(error, OSError):
        assert "cannot be written (No space left on device); choose another --out" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == (["out"] if existing else [])
    if existing:
        assert read_manifest(out).shards == {file.name: sha256(file) for file in out.glob("*.safetensors")}


def test_the_old_checkpoint_comes_back_if_the_new_one_cannot_take_its_place(
    source: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if ".partial-" in self.name:
            raise PermissionError(13, "Permission denied")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    before = {file.name: file.read_bytes() for file in copy.iterdir()}
    with pytest.raises(QbenchError, match="cannot be written"):
        write(source, copy)
    assert {file.name: file.read_bytes() for file in copy.iterdir()} == before
    assert [path.name for path in copy.parent.iterdir()] == ["copy"]


def test_a_new_checkpoint_takes_the_place_of_the_old_one(source: Path, copy: Path) -> None:
    write(source, copy, PLAIN.model_copy(update={"group_size": 64}))
    assert read_manifest(copy).group_size == 64
    assert [path.name for path in copy.parent.iterdir()] == ["copy"]
    assert len(list(copy.glob("*.safetensors"))) == 1


@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 70),
    bits=st.sampled_from([3, 4, 8]),
    group_size=st.sampled_from([-1, 0, 1, 7, 32, 64]),
    symmetric=st.booleans(),
)
def test_stored_shapes_are_those_of_the_quantizer(rows: int, columns: int, **scheme) -> None:
    manifest = Manifest(**scheme, search="none", source_fingerprint="", qbench_version="", shards={})
    weight = torch.linspace(-1, 1, rows * columns).view(rows, columns)
    made = quantize(weight, search="none", **scheme).tensors()
    assert checkpoint.part_shapes(weight.shape, manifest) == {name: tensor.shape for name, tensor in made.items()}


MEASURE = """
import gc, sys
from pathlib import Path
from qbench.compat import lean
lean.import_transformers(())
import torch
from qbench.backends import int4
from qbench.backends.int4 import Int4, checkpoint, folder
from qbench.backends.int4.stream import quantizer
from qbench.machine.resident import ResidentPeak
from qbench.model.load import LoadOptions

def options(folder):
    return LoadOptions(folder=Path(folder), device=torch.device("cpu"), dtype=torch.bfloat16, work=Path(folder))

def write(folder, out):
    checkpoint.write(options(folder), Int4(search="none"), quantizer(Int4(search="none")), Path(out))

def load(folder, out):
    return int4.load(options(folder), Int4(checkpoint=Path(out)), None)

folder.SHARD_BYTES = 1 << 20
small, large, out = sys.argv[1:]
write(small, out + "-small")
load(small, out + "-small")
gc.collect()
resident = ResidentPeak()
write(large, out)
print(resident.bytes())
gc.collect()
resident = ResidentPeak()
model = load(large, out)
print(resident.bytes(), model.weight_bytes)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is only known on Linux")
def test_neither_writing_nor_loading_holds_the_16_bit_model(large_and_small: tuple[Path, Path], tmp_path: Path) -> None:
    """Writing holds a shard, here of one tensor, and what quantizing one takes; loading, what streaming holds."""
    large, small = large_and_small
    arguments = [sys.executable, "-c", MEASURE, small, large, tmp_path / "out"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    written, loaded, quantized = map(int, done.stdout.split())
    assert written < 3 * LARGEST_TENSOR
    assert loaded <= 1.1 * quantized + 2 * LARGEST_TENSOR


def test_progress_counts_every_tensor(source: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    watched = replace(options(source), progress=lambda *step: seen.append(step))
    checkpoint.write(watched, PLAIN, quantizer(PLAIN), tmp_path / "out")
    total = len(load_file(source / "model.safetensors"))
    assert seen == [("quantizing", done, total) for done in range(total + 1)]
