"""Inputs that decide figures are known by their content: with one byte changed, what it decides is measured again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from qbench import demo
from qbench.config import MMLUConfig, RunConfig, kinds
from qbench.decide.provenance import differences
from qbench.errors import QbenchError
from qbench.model import content, hub
from qbench.run import checkpoints, fingerprint
from qbench.run.events import EventLog
from qbench.run.folder import RunFolder
from tests.support.frames import read_frames
from tests.support.made_up_run import environment, made_up_run
from tests.support.plugin import install, install_example, installed
from tests.support.runs import run, run_config
from tests.support.tiny_llama import save_tiny_llama

ALL = {"cell", "throughput/b1/t0", "mmlu", "tasks/piqa", "tasks/arc_easy", "perplexity"}


class Inputs:
    """A run that reads a file of every sort, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = save_tiny_llama(folder / "model")
        for name in ("generation_config.json", "chat_template.jinja", "modeling_own.py", "adapter_model.bin"):
            (self.model / name).write_text("{}")
        (self.model / "parts").mkdir()
        (self.model / "parts" / "layer.py").write_text("SCALE = 1")
        self.mmlu = Path(shutil.copytree(demo.MMLU_DIR, folder / "mmlu"))
        (folder / "piqa").mkdir()
        (folder / "piqa" / "validation.jsonl").write_text("{}\n")
        (folder / "arc.jsonl").write_text("{}\n")
        (folder / "calibration.txt").write_text("some words")
        (folder / "heldout.txt").write_text("other words")
        site = folder / "lib" / "python3.12" / "site-packages" / "torch-2.12.dist-info"
        site.mkdir(parents=True)
        (site / "METADATA").write_text("Name: torch\nVersion: 2.12")
        (folder / "pyvenv.cfg").write_text("home = /usr/bin\nversion = 3.12.3")
        (folder / "bin").mkdir()
        (folder / "bin" / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        save_tiny_llama(folder / "checkpoint")

    def config(self) -> RunConfig:
        return RunConfig.model_validate(
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

    def units(self) -> dict[str, str]:
        config = self.config()
        return fingerprint.units(config, config.backends[0], environment(), content.fingerprint(self.model))

    def run_folder(self, path: Path) -> RunFolder:
        return RunFolder(path, self.config(), {}, {"gptq": self.units()})


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return Inputs(tmp_path_factory.mktemp("inputs"))


@contextmanager
def another_byte(path: Path, where: float = 1.0) -> Iterator[None]:
    """A file with one byte changed, from its first (0) to its last (1)."""
    before = path.read_bytes()
    place = int(where * (len(before) - 1))
    path.write_bytes(before[:place] + bytes([before[place] ^ 1]) + before[place + 1 :])
    try:
        yield
    finally:
        path.write_bytes(before)


@pytest.fixture(scope="module")
def measured(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder in which every unit has been measured."""
    folder = inputs.run_folder(tmp_path_factory.mktemp("run"))
    folder.make(fresh=False)
    folder.cell("gptq").mkdir()
    log = EventLog(folder.cell("gptq") / "events.jsonl")
    for name, key in folder.units["gptq"].items():
        log.unit(name, key, [])
    (folder.answers / "gptq.parquet").touch()
    return folder.path


@pytest.mark.parametrize("where", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    ("file", "touched"),
    [
        *((f"model/{name}", ALL) for name in (
            "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
            "chat_template.jinja", "modeling_own.py", "parts/layer.py", "adapter_model.bin",
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
def test_a_byte_of_an_input_loses_the_units_that_it_decides_and_no_other(
    inputs: Inputs, measured: Path, file: str, touched: set[str], where: float
) -> None:
    assert inputs.run_folder(measured).missing("gptq") == []
    with another_byte(inputs.folder / file, where):
        assert set(inputs.run_folder(measured).missing("gptq")) == touched
    assert inputs.run_folder(measured).missing("gptq") == []


@pytest.mark.parametrize("file", ["pyvenv.cfg", "lib/python3.12/site-packages/torch-2.12.dist-info/METADATA"])
def test_an_interpreter_counts_by_its_version_and_by_those_of_its_libraries(
    inputs: Inputs, measured: Path, file: str
) -> None:
    with another_byte(inputs.folder / file):
        assert set(inputs.run_folder(measured).missing("gptq")) == ALL


def test_the_same_files_elsewhere_are_the_same(inputs: Inputs, tmp_path: Path) -> None:
    assert Inputs(tmp_path).units() == inputs.units()


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the hub's client keeps what it fetched; the hub itself cannot be reached."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    hub.commit.cache_clear()
    yield tmp_path / "hub"
    hub.commit.cache_clear()


def fetched(cache: Path, repo: str, commit: str) -> None:
    """A repository (`datasets--cais--mmlu`) whose main branch was last seen at `commit`."""
    reference = cache / repo / "refs" / "main"
    reference.parent.mkdir(parents=True, exist_ok=True)
    reference.write_text(commit)
    hub.commit.cache_clear()


@pytest.mark.parametrize(
    ("repo", "touched"),
    [
        ("datasets--cais--mmlu", {"mmlu"}),
        ("models--someone--tiny-awq", {"cell", "mmlu", "perplexity"}),
    ],
)
def test_what_the_hub_has_under_a_name_counts_by_its_commit(hub_cache: Path, repo: str, touched: set[str]) -> None:
    config = RunConfig.model_validate(
        {
            "name": "r",
            "model": {"demo": True},
            "backends": [{"kind": "awq", "checkpoint": "someone/tiny-awq"}],
            "measure": {"mmlu": {}, "perplexity": {"divergence": False}},
        }
    )

    def units() -> dict[str, str]:
        return fingerprint.units(config, config.backends[0], environment(), "f")

    unknown = units()
    fetched(hub_cache, repo, "a" * 40)
    first = units()
    fetched(hub_cache, repo, "b" * 40)
    second = units()
    for before, after in ((unknown, first), (first, second)):
        assert {name for name in after if before.get(name) != after[name]} == touched


def test_the_hubs_own_word_comes_before_what_was_fetched(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi

    fetched(hub_cache, "datasets--cais--mmlu", "a" * 40)
    assert hub.identify("cais/mmlu", kind="dataset") == "cais/mmlu@" + "a" * 40
    hub.commit.cache_clear()
    monkeypatch.setattr(HfApi, "repo_info", lambda self, repo, **_: SimpleNamespace(sha="c" * 40))
    assert hub.identify("cais/mmlu", kind="dataset") == "cais/mmlu@" + "c" * 40


def test_the_questions_named_in_a_key_are_those_that_the_harness_fetches() -> None:
    from qbench.compat.lm_eval import mmlu_template

    assert MMLUConfig().hub_datasets() == {"data": mmlu_template()["dataset_path"]}


def test_code_in_another_repository_is_part_of_a_model(hub_cache: Path, tmp_path: Path) -> None:
    model = save_tiny_llama(tmp_path / "model")
    settings = json.loads((model / "config.json").read_text())
    auto_map = {"AutoConfig": "someone/code--own.Config", "AutoTokenizer": [None, "someone/code--own.Tokenizer"]}
    (model / "config.json").write_text(json.dumps(settings | {"auto_map": auto_map}))
    unknown = content.fingerprint(model)
    fetched(hub_cache, "models--someone--code", "a" * 40)
    first = content.fingerprint(model)
    fetched(hub_cache, "models--someone--code", "b" * 40)
    assert len({unknown, first, content.fingerprint(model)}) == 3


def test_another_16_bit_cell_changes_what_is_compared_with_it(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh")
    config = RunConfig.model_validate(
        {
            "name": "r",
            "model": {"demo": True},
            "backends": [{"kind": "fp16", "python": python}, {"kind": "int4"}],
            "measure": {"perplexity": {}, "mmlu": {"data": "demo"}},
        }
    )

    def units() -> dict[str, str]:
        return fingerprint.units(config, config.backends[1], environment(), "f")

    before = units()
    with another_byte(python):
        assert {name for name, key in units().items() if key != before[name]} == {"perplexity"}


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the package that keys are made of."""
    copy = shutil.copytree(fingerprint.PACKAGE, tmp_path / "qbench", ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "int4" / "_qint4.so").write_bytes(b"compiled")
    monkeypatch.setattr(fingerprint, "PACKAGE", copy)
    fingerprint.code_hash.cache_clear()
    yield copy
    monkeypatch.undo()
    fingerprint.code_hash.cache_clear()


@pytest.mark.parametrize(
    ("file", "decides"),
    [
        ("analysis/formulas.py", True),
        ("compat/lm_eval.py", True),
        ("engine/torch/decode.py", True),
        ("int4/_qint4.so", True),
        ("int4/csrc/product_amx.c", True),
        ("int4/csrc/cuda/weights.cuh", True),
        ("int4/kernels/_triton.py", True),
        ("int4/kernels/tuned/cuda_NVIDIA_H100_80GB_HBM3.json", True),
        ("machine/resident.py", True),
        ("measure/windows.py", True),
        ("model/load.py", True),
        ("run/cell.py", True),
        ("cli/decide.py", False),
        ("decide/compare.py", False),
        ("show/compare.py", False),
    ],
)
def test_code_that_measures_decides_every_unit(inputs: Inputs, source: Path, file: str, decides: bool) -> None:
    before = inputs.units()
    with another_byte(source / file):
        fingerprint.code_hash.cache_clear()
        after = inputs.units()
    assert {name for name in ALL if before[name] != after[name]} == (ALL if decides else set())


def test_what_a_worker_imports_is_code_that_measures_or_only_keeps() -> None:
    """Whoever writes a module that makes figures is told to name it."""
    keeps = {
        *("qbench", "qbench.analysis", "qbench.demo", "qbench.errors", "qbench.records", "qbench.run", "qbench.text"),
        *(f"qbench.config{name}" for name in ("", ".backends", ".base", ".kinds", ".measures", ".requests", ".run")),
        *(f"qbench.config.{name}" for name in ("target", "timed", "trials")),
        *(f"qbench.records.{name}" for name in ("files", "redact", "rows")),
        *(f"qbench.run.{name}" for name in ("checkpoints", "events", "fingerprint", "job", "starts")),
    }
    script = (
        "import importlib, json, sys; from qbench.compat import lean; lean.import_transformers(())\n"
        "import qbench.run.cell; from qbench.config import MeasureConfig\n"
        "from qbench.config.kinds import SHIPPED, registered\n"
        "for name in MeasureConfig.model_fields: importlib.import_module(f'qbench.measure.{name}')\n"
        "for name in SHIPPED: registered(name).load_config()\n"
        "print(json.dumps({n: m.__file__ for n, m in sys.modules.items() if n.partition('.')[0] == 'qbench'}))"
    )
    listed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    files = {name: Path(file) for name, file in json.loads(listed.splitlines()[-1]).items()}
    measuring = [fingerprint.PACKAGE / part for part in fingerprint.MEASURING]
    assert all(part.exists() for part in measuring)
    others = {
        name for name, file in files.items() if not any(file == part or part in file.parents for part in measuring)
    }
    assert others <= keeps


@pytest.mark.parametrize(
    ("file", "differs"),
    [("int4/csrc/cuda/weights.cuh", True), ("show/compare.py", True), ("int4/_qint4.so", False)],
)
def test_nodes_of_a_cluster_agree_on_all_sources(source: Path, file: str, differs: bool) -> None:
    fingerprint.source_hash.cache_clear()
    before = fingerprint.source_hash()
    with another_byte(source / file):
        fingerprint.source_hash.cache_clear()
        assert (fingerprint.source_hash() != before) is differs
    fingerprint.source_hash.cache_clear()


@pytest.mark.parametrize("layout", ["package", "modules"])
def test_all_code_of_a_plug_in_decides_its_figures(tmp_path: Path, layout: str) -> None:
    module = "own_rows.kind" if layout == "package" else "own_kind"
    helper = "own_rows/inner/codes.py" if layout == "package" else "own_codes.py"
    install(tmp_path, "own-rows", {"own": module}, {})
    for file in (f"{module.replace('.', '/')}.py", helper, "own_rows/__init__.py", "own_rows/inner/__init__.py"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("A = 1\n")
    (tmp_path / "own_rows-1.0.dist-info" / "RECORD").write_text(f"own_kind.py,,\n{helper},,\n")
    with installed(tmp_path):
        before = kinds.plugin_facts("own")
        assert kinds.plugin_facts("own") == before
        with another_byte(tmp_path / helper):
            assert kinds.plugin_facts("own") != before


def test_a_plug_ins_own_module_decides_its_figures(tmp_path: Path) -> None:
    with installed(install_example(tmp_path, "numpy_engine")):
        before = kinds.plugin_facts("numpy")
        (file,) = tmp_path.glob("*.py")
        with another_byte(file):
            assert kinds.plugin_facts("numpy") != before


class Reads:
    """Which files were read whole for their hash."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.files: list[str] = []
        read = content.sha256
        monkeypatch.setattr(content, "sha256", lambda path: (self.files.append(path.name), read(path))[1])


def test_a_large_file_is_read_once_until_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(content, "SETTLED_NS", -1)
    file = tmp_path / "model.safetensors"
    file.write_bytes(bytes(content.SMALL_BYTES + 1))
    os.utime(file, (1, 1))
    expected = content.sha256(file)
    reads = Reads(monkeypatch)
    assert [content.file_hash(file) for _ in range(3)] == [expected] * 3
    assert len(reads.files) == 1
    with another_byte(file):
        assert content.file_hash(file) != expected
        assert len(reads.files) == 2


def test_a_file_that_was_just_written_is_not_known_by_its_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content, "SETTLED_NS", 3600 * 10**9)
    file = tmp_path / "model.safetensors"
    file.write_bytes(bytes(content.SMALL_BYTES + 1))
    reads = Reads(monkeypatch)
    assert content.file_hash(file) == content.file_hash(file)
    assert len(reads.files) == 2


def test_a_checkpoint_is_read_once_for_its_hash_however_often_it_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(content, "SETTLED_NS", -1)

    def make(folder: Path) -> float:
        folder.mkdir()
        (folder / "weights.safetensors").write_bytes(bytes(content.SMALL_BYTES + 1))
        content.file_hash(folder / "weights.safetensors")  # as the backend does for its own manifest
        return 1.0

    reads = Reads(monkeypatch)
    for found in (False, True):
        entry, there = checkpoints.obtain({"a": 1}, "m", make, lambda text: None)
        assert there == found
        content.file_hash(entry.folder / "weights.safetensors")
    assert reads.files.count("weights.safetensors") == 1


def test_a_corrected_answer_is_measured_again_and_said(tmp_path: Path) -> None:
    data = Path(shutil.copytree(demo.MMLU_DIR, tmp_path / "mmlu"))
    mmlu = {"data": str(data), "num_fewshot": 0, "limit": 4, "subjects": ["invented_birds"]}
    settings = run_config(measure={"memory": {"seq_len": 8}, "mmlu": mmlu}, dtype="float32")
    folder, ok, _ = run(settings, tmp_path / "results")
    assert ok
    first = read_frames(folder)
    answers = pd.read_parquet(folder / "answers" / "fp16.parquet")
    file = data / "test" / "invented_birds_test.csv"
    lines = file.read_text().splitlines()
    # To what the model does not answer if it was right, to what it does if it was not: one more or one less.
    predicted, was_right = int(answers["predicted"][0]), answers["predicted"][0] == answers["gold"][0]
    letter = "ABCD"[(predicted + 1) % 4] if was_right else "ABCD"[predicted]
    file.write_text("\n".join([lines[0][:-1] + letter, *lines[1:]]) + "\n")
    _, ok, watcher = run(settings, tmp_path / "results")
    assert ok
    assert "changed since the last run: measure.mmlu.data; what depends on it is measured again" in watcher.said
    second = read_frames(folder)
    expected = first.accuracy["correct"].item() + (-1 if was_right else 1)
    assert second.accuracy["correct"].tolist() == [expected]
    assert second.record.asked["mmlu"] != first.record.asked["mmlu"]
    assert "questions of mmlu" in {found.name for found in differences(first.record, second.record)}


def test_another_file_is_another_configuration_and_the_same_one_rewritten_is_not() -> None:
    before = {"measure.perplexity.text": "a.txt sha256:1", "dtype": "auto", fingerprint.CODE: "sha256:1"}
    other_file = before | {"measure.perplexity.text": "b.txt sha256:2", fingerprint.CODE: "sha256:2"}
    assert fingerprint.rewritten(before, other_file) == [fingerprint.CODE]
    assert [line.partition(":")[0] for line in fingerprint.changed(before, other_file)] == ["measure.perplexity.text"]
    same_file = before | {"measure.perplexity.text": "a.txt sha256:2"}
    assert fingerprint.rewritten(before, same_file) == ["measure.perplexity.text"]
    assert fingerprint.changed(before, same_file) == []


def test_a_cell_is_not_compared_with_log_probabilities_of_another_text(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("some words")
    config = RunConfig.model_validate(
        {
            "name": "r",
            "model": {"demo": True},
            "backends": [{"kind": "fp16"}, {"kind": "int4"}],
            "measure": {"perplexity": {"text": str(text)}},
        }
    )

    def folder() -> RunFolder:
        units = {one.label: fingerprint.units(config, one, environment(), "f") for one in config.backends}
        return RunFolder(tmp_path / "r", config, {}, units)

    before = folder()
    before.make(fresh=False)
    before.cell("fp16").mkdir()
    before.reference.parent.mkdir()
    before.reference.touch()
    EventLog(before.cell("fp16") / "events.jsonl").unit("perplexity", before.units["fp16"]["perplexity"], [])
    only = [config.backends[1]]
    folder().check_reference(only, fresh=False)
    with another_byte(text), pytest.raises(QbenchError, match="or of other files than now; add --only fp16"):
        folder().check_reference(only, fresh=False)


def test_runs_of_other_questions_are_of_another_configuration() -> None:
    first, second = (made_up_run([], mmlu={"data": "/data"}).record for _ in range(2))
    for fact in ({"facts": {"measure.mmlu.data": "sha256:1"}}, {"asked": {"mmlu": "1"}}):
        ((group, values),) = fact.items()
        (name,) = values
        other = {group: {name: values[name].replace("1", "2")}}
        one, two = first.model_copy(update=fact), second.model_copy(update=other)
        (found,) = differences(one, two)
        assert found.group == "configuration"
        assert found.name == ("measure.mmlu.data" if group == "facts" else "questions of mmlu")
        assert differences(one, one) == []
    kept_none = first.model_copy(update={"asked": {}})
    assert differences(kept_none, second.model_copy(update={"asked": {"mmlu": "1"}})) == []


def test_runs_of_other_code_are_of_other_software() -> None:
    first, second = (
        made_up_run([]).record.model_copy(update={"facts": {fingerprint.CODE: f"sha256:{value}"}}) for value in "ab"
    )
    (found,) = differences(first, second)
    assert (found.group, found.name, found.first, found.second) == ("software", "code", "a", "b")


def test_units_of_two_kernels_are_never_kept_together(inputs: Inputs, tmp_path: Path) -> None:
    """Also if the worker that found another kernel came to one unit only."""
    folder = inputs.run_folder(tmp_path)
    folder.cell("gptq").mkdir(parents=True)
    log = EventLog(folder.cell("gptq") / "events.jsonl")
    log.kernel = "marlin"
    for name, key in folder.units["gptq"].items():
        log.unit(name, key, [])
    assert set(folder.kept("gptq")) == ALL
    log.kernel = "torch"
    log.unit("throughput/b1/t0", folder.units["gptq"]["throughput/b1/t0"], [])
    assert set(folder.kept("gptq")) == {"throughput/b1/t0"}
