"""Every input that decides a figure is known by its content: one byte of it makes other keys, its place does not."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qbench import demo
from qbench.config import RunConfig
from qbench.decide.provenance import differences
from qbench.errors import QbenchError
from qbench.model import content
from qbench.run import fingerprint
from tests.support.made_up_run import environment, made_up_run
from tests.support.plugin import install_example
from tests.support.runs import run
from tests.support.tiny_llama import save_tiny_llama

ALL = {"cell", "throughput/b1/t0", "mmlu", "tasks/piqa", "tasks/arc_easy", "perplexity"}


class Inputs:
    """A run that reads a file of every sort, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = save_tiny_llama(folder / "model")
        for name in ("generation_config.json", "chat_template.jinja", "tokenizer_config.json", "modeling_own.py"):
            (self.model / name).write_text("{}")
        (self.model / "parts").mkdir()
        (self.model / "parts" / "layer.py").write_text("SCALE = 1")
        self.mmlu = Path(shutil.copytree(demo.MMLU_DIR, folder / "mmlu"))
        (folder / "piqa").mkdir()
        (folder / "piqa" / "validation.jsonl").write_text("{}\n")
        (folder / "arc.jsonl").write_text("{}\n")
        (folder / "calibration.txt").write_text("some words")
        (folder / "heldout.txt").write_text("other words")
        (folder / "bin").mkdir()
        (folder / "bin" / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        save_tiny_llama(folder / "checkpoint")

    def units(self) -> dict[str, str]:
        config = RunConfig.model_validate(
            {
                "name": "r",
                "model": {"path": str(self.model), "trust_remote_code": True},
                "calibration": {"text": str(self.folder / "calibration.txt")},
                "backends": [
                    {
                        "kind": "gptq",
                        "python": str(self.folder / "bin" / "python"),
                        "checkpoint": str(self.folder / "checkpoint"),
                    }
                ],
                "measure": {
                    "throughput": {"batch_sizes": [1], "trials": 1},
                    "mmlu": {"data": str(self.mmlu)},
                    "tasks": {
                        "names": ["piqa", "arc_easy"],
                        "data": {"piqa": self.folder / "piqa", "arc_easy": self.folder / "arc.jsonl"},
                    },
                    "perplexity": {"text": str(self.folder / "heldout.txt"), "divergence": False},
                },
            }
        )
        return fingerprint.units(config, config.backends[0], environment(), content.fingerprint(self.model))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return Inputs(tmp_path_factory.mktemp("inputs"))


def with_another_byte(path: Path) -> Callable[[], object]:
    """Change the last byte of a file; returns what takes it back."""
    before = path.read_bytes()
    path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    return lambda: path.write_bytes(before)


@pytest.mark.parametrize(
    ("file", "touched"),
    [
        *((f"model/{name}", ALL) for name in (
            "config.json", "generation_config.json", "model.safetensors", "tokenizer_config.json",
            "chat_template.jinja", "modeling_own.py", "parts/layer.py",
        )),
        ("mmlu/test/invented_birds_test.csv", {"mmlu"}),
        ("mmlu/dev/invented_birds_dev.csv", {"mmlu"}),
        ("piqa/validation.jsonl", {"tasks/piqa"}),
        ("arc.jsonl", {"tasks/arc_easy"}),
        ("calibration.txt", set()),  # a ready checkpoint is not calibrated; see test_keys.py for one that is
        ("heldout.txt", {"perplexity"}),
        ("checkpoint/model.safetensors", ALL),
        ("checkpoint/config.json", ALL),
        ("bin/python", ALL),
    ],
)  # fmt: skip
def test_a_byte_of_an_input_changes_the_units_that_it_decides_and_no_other(
    inputs: Inputs, file: str, touched: set[str]
) -> None:
    before = inputs.units()
    assert set(before) == ALL
    restore = with_another_byte(inputs.folder / file)
    after = inputs.units()
    restore()
    assert {name for name in before if before[name] != after[name]} == touched
    assert inputs.units() == before


def test_the_same_files_elsewhere_are_the_same(inputs: Inputs, tmp_path: Path) -> None:
    assert Inputs(tmp_path).units() == inputs.units()


@pytest.mark.parametrize(
    "file",
    ["measure/windows.py", "int4/csrc/product_amx.c", "int4/kernels/_triton.py", "compat/torch.py", "run/worker.py"],
)
def test_code_that_measures_decides_every_unit(
    inputs: Inputs, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = inputs.units()
    copy = shutil.copytree(fingerprint.PACKAGE, tmp_path / "qbench", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(fingerprint, "PACKAGE", copy)
    fingerprint.code_hash.cache_clear()
    assert inputs.units() == before
    with_another_byte(copy / file)
    fingerprint.code_hash.cache_clear()
    after = inputs.units()
    monkeypatch.undo()
    fingerprint.code_hash.cache_clear()
    assert not set(before.values()) & set(after.values())


def test_all_code_of_a_plug_ins_package_decides_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qbench.config import kinds

    install_example(tmp_path, "numpy_engine")
    monkeypatch.syspath_prepend(str(tmp_path))
    kinds.plugins.cache_clear()
    try:
        before = kinds.plugin_facts("numpy")
        (source,) = tmp_path.glob("*.py")
        with_another_byte(source)
        assert kinds.plugin_facts("numpy") != before
    finally:
        kinds.plugins.cache_clear()


def test_a_large_file_is_read_once_until_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(content, "SETTLED_NS", -1)
    file = tmp_path / "model.safetensors"
    file.write_bytes(bytes(content.SMALL_BYTES + 1))
    expected = content.sha256(file)
    reads = []
    monkeypatch.setattr(content, "sha256", lambda path, read=content.sha256: (reads.append(path), read(path))[1])
    assert [content.file_hash(file) for _ in range(3)] == [expected] * 3
    assert len(reads) == 1
    with_another_byte(file)
    assert content.file_hash(file) != expected
    assert len(reads) == 2


def test_a_corrected_answer_is_never_kept_beside_the_old_ones(tiny_llama: Path, tmp_path: Path) -> None:
    """The second run of the folder ends with what has changed, and nothing of the first is lost."""
    data = Path(shutil.copytree(demo.MMLU_DIR, tmp_path / "mmlu"))
    settings: dict[str, Any] = {
        "name": "r",
        "model": {"path": str(tiny_llama)},
        "dtype": "float32",
        "backends": [{"kind": "fp16"}],
        "measure": {"mmlu": {"data": str(data), "num_fewshot": 0, "limit": 2, "subjects": ["invented_birds"]}},
    }
    folder, ok, _ = run(RunConfig.model_validate(settings), tmp_path / "results")
    assert ok
    table = (folder / "accuracy.csv").read_bytes()
    questions = data / "test" / "invented_birds_test.csv"
    questions.write_text(questions.read_text()[:-2] + ("A" if questions.read_text()[-2] != "A" else "B") + "\n")
    with pytest.raises(QbenchError, match=r"(?s)measure\.mmlu\.data: 'sha256:.*start over with --fresh"):
        run(RunConfig.model_validate(settings), tmp_path / "results")
    assert (folder / "accuracy.csv").read_bytes() == table


def test_runs_of_other_questions_are_of_another_configuration() -> None:
    first, second = (made_up_run([], mmlu={"data": "/data"}).record for _ in range(2))
    first, second = (
        record.model_copy(update={"facts": {"measure.mmlu.data": value}})
        for record, value in ((first, "sha256:1"), (second, "sha256:2"))
    )
    (found,) = differences(first, second)
    assert (found.group, found.name, found.first, found.second) == (
        "configuration", "measure.mmlu.data", "sha256:1", "sha256:2",
    )  # fmt: skip
    assert differences(first, first) == []
