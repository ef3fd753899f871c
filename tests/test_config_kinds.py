"""Backends of other distributions: the documentation's example, really installed, and ones that are broken."""

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
import torch
import yaml

from qbench.backends.base import import_backend
from qbench.backends.fp16 import FP16
from qbench.config import RunConfig, backend_kinds, kind_names, load, schema
from qbench.config.kinds import SHIPPED, backend_class, plugins
from qbench.config.target import Target
from qbench.errors import QbenchError
from qbench.machine import environment
from qbench.machine.environment import GPU
from qbench.model import random_weights
from qbench.plan import backends, starter
from qbench.plan.memory import Prediction
from qbench.plan.starter import choose
from qbench.run import fingerprint
from qbench.run.job import config_of
from qbench.show.plots.style import cell_styles
from tests.support import tiny_llama as tiny
from tests.support.architectures import LLAMA, architecture
from tests.support.cli import qbench
from tests.support.frames import read_frames
from tests.support.plugin import EXAMPLES, install, install_example, installed
from tests.support.predictions import CPU, DIMENSIONS, measured_peak
from tests.support.runs import cells_here
from tests.support.tiny_variants import options

MODULE = "qbench_int8_rows"
ROWS = tiny.LAYERS * (2 * tiny.HIDDEN + 2 * tiny.KV + 2 * tiny.INTERMEDIATE + tiny.HIDDEN)
"""out_features of all linears together."""


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder that Python searches for distributions and modules, here and in processes that are started."""
    folder = tmp_path / "site"
    folder.mkdir()
    paths = [str(folder), str(EXAMPLES.parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    with installed(folder):
        yield folder


@pytest.fixture
def example(registry: Path) -> Path:
    """The same with the example in it."""
    return install_example(registry)


def values(*cells: dict[str, object]) -> dict[str, object]:
    return {"name": "r", "model": {"demo": True}, "backends": [*cells]}


def python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, check=False)


def test_the_example_runs_as_an_installed_distribution(example: Path, tiny_llama: Path, tmp_path: Path) -> None:
    settings = {
        "name": "tiny",
        "model": {"path": str(tiny_llama)},
        "backends": [{"kind": "fp16"}, {"kind": "int8-rows", "clip": 0.95}],
        "measure": {"throughput": {"batch_sizes": [1, 2], "seq_len": 24, "new_tokens": 4, "trials": 1}},
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(settings))
    done = python("-m", "qbench", "run", "tiny.yaml", "--only", "int8-rows", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    with cells_here():
        again = qbench("run", "tiny.yaml", cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "int8-rows: already measured" in again.stdout + again.stderr
    run = read_frames(tmp_path / "results" / "tiny")
    cell = run.cells.set_index("label").loc["int8-rows"]
    assert (cell["backend"], cell["status"], cell["kernel"], cell["bits"]) == ("int8-rows", "ok", "RowsLinear", 8)
    assert cell["quantized_layers"] == cell["expected_layers"] == len(tiny.LINEARS)
    assert cell["effective_bits_per_weight"] == pytest.approx(8 + 16 * ROWS / tiny.LINEAR_WEIGHTS)
    assert run.throughput["label"].value_counts().to_dict() == {"fp16": 2, "int8-rows": 2}
    assert run.record.config["backends"][1]["clip"] == 0.95

    with (example / f"{MODULE}.py").open("a") as file:
        file.write("# edited\n")
    with cells_here():
        edited = qbench("run", "tiny.yaml", cwd=tmp_path)
    said = edited.stdout + edited.stderr
    assert edited.returncode == 0, said
    assert "changed since the last run: backends.int8-rows.plugin.code" in said
    assert "fp16: already measured" in said
    assert "int8-rows: already measured" not in said


def test_the_example_is_short() -> None:
    assert len((EXAMPLES / "int8_rows" / f"{MODULE}.py").read_text().splitlines()) < 75


def test_reading_a_configuration_imports_no_torch(example: Path, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(values({"kind": "int8-rows"})))
    code = (
        "import sys; from pathlib import Path; from qbench.config import load; "
        "load.load(Path('r.yaml')); assert 'qbench_int8_rows' in sys.modules; assert 'torch' not in sys.modules"
    )
    done = python("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_options_of_shipped_kinds_import_neither_torch_nor_pandas(tmp_path: Path) -> None:
    code = (
        "import sys; from qbench.config import backend_kinds, schema; backend_kinds(); schema.text(); "
        "import qbench.int4.limits, qbench.plan.forecast, qbench.plan.starter; "
        "print(*{'torch', 'transformers', 'pandas', 'scipy'} & {*sys.modules})"
    )
    done = python("-c", code, cwd=tmp_path)
    assert (done.stdout.strip(), done.returncode) == ("", 0), done.stderr


def test_shipped_kinds_look_for_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the time nor the faults of distributions touch a configuration that does not name their kinds."""

    def fail(**_: object) -> None:
        raise AssertionError("entry points were read")

    monkeypatch.setattr(metadata, "entry_points", fail)
    plugins.cache_clear()
    needed = {kind: {"checkpoint": "x"} for kind in ("compressed-tensors", "auto-round")}
    needed["server"] = {"url": "http://127.0.0.1:1"}
    cells = ({"kind": kind, "label": f"a-{kind}", **needed.get(kind, {})} for kind in backend_kinds())
    load.check(values(*cells), "r.yaml")
    with pytest.raises(QbenchError, match=r"did you mean group_size"):
        load.check(values({"kind": "int4", "group_siz": 1}), "r.yaml")


def test_a_cell_keeps_its_options_through_json(example: Path) -> None:
    config = load.check(values({"kind": "int8-rows", "clip": 0.5, "label": "half"}, {"kind": "fp16"}), "r.yaml")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text = config.model_dump_json()
    assert RunConfig.model_validate_json(text) == config
    assert RunConfig.model_validate({**values(), "backends": config.backends}) == config
    cell = config.backends[0]
    assert (cell.kind, cell.label, cell.weight_bits, getattr(cell, "clip", None)) == ("int8-rows", "half", 8, 0.5)


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        (
            {"kind": "int8-row"},
            "backends[0].kind: unknown backend 'int8-row'; did you mean int8-rows? "
            f"(valid: {', '.join(SHIPPED)}, int8-rows)",
        ),
        ({"label": "x"}, f"backends[0].kind: is missing (one of {', '.join(SHIPPED)}, int8-rows)"),
        (
            {"kind": "int8-rows", "clop": 1},
            "backends[0].clop: unknown key; did you mean clip? (valid: kind, label, python, kv_cache, resources, clip)",
        ),
        ({"kind": "int8-rows", "clip": "x"}, "backends[0].clip: input should be a valid number"),
    ],
)
def test_errors_are_those_of_shipped_kinds(example: Path, cell: dict[str, object], words: str) -> None:
    with pytest.raises(QbenchError) as caught:
        load.check(values(cell), "r.yaml")
    assert words in str(caught.value)


def test_it_is_listed_and_in_the_schema(example: Path) -> None:
    assert kind_names() == [*backend_kinds(), "int8-rows"]
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(schema.build())
    validator.check_schema(schema.build())
    assert validator.is_valid(values({"kind": "int8-rows", "clip": 0.5}))
    assert not validator.is_valid(values({"kind": "int8-rows", "clop": 0.5}))
    assert not validator.is_valid(values({"kind": "int8-rowz"}))


def test_it_is_available_where_its_libraries_are(example: Path) -> None:
    lacking = (example / f"{MODULE}.py").read_text().replace('"qbench-int8-rows")', '"no-such-library")')
    install(example, "lacking", {"lacking": "lacking"}, {"lacking": lacking.replace("int8-rows", "lacking")})
    plugins.cache_clear()
    good, bad = backends.probe(["int8-rows", "lacking"])
    assert good.reason is None
    assert "no-such-library" in str(bad.reason)
    assert bad.remedy == "pip install qbench-lacking"


def test_its_source_decides_its_figures_alone(example: Path) -> None:
    config = load.check(values({"kind": "int8-rows"}, {"kind": "int4"}), "r.yaml")
    machine = environment.detect()

    def units() -> list[dict[str, str]]:
        return [fingerprint.units(config, cell, machine, "f") for cell in config.backends]

    facts = fingerprint.cell_facts(config, config.backends[0], machine, "f")
    assert facts["versions.qbench-int8-rows"] == "1.0"
    (own, other), checkpoint = (
        units(),
        fingerprint.checkpoint_facts(config, config.backends[0], "f", device="cpu", dtype="bfloat16"),
    )
    with (example / f"{MODULE}.py").open("a") as file:
        file.write("# edited\n")
    after_own, after_other = units()
    assert not set(own.values()) & set(after_own.values())
    assert other == after_other
    edited = fingerprint.checkpoint_facts(config, config.backends[0], "f", device="cpu", dtype="bfloat16")
    assert {name for name in edited if edited[name] != checkpoint[name]} == {"code"}


def test_another_interpreter_is_not_told_of_what_it_may_lack(example: Path) -> None:
    cells = [{"kind": "int8-rows"}, {"kind": "fp16"}, {"kind": "nf4", "python": "/p"}]
    config = load.check(values(*cells), "r.yaml")
    assert [cell.kind for cell in config_of(config, config.backends[2]).backends] == ["fp16", "nf4"]
    assert config_of(config, config.backends[0]) is config


def test_a_plan_predicts_its_memory(example: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"} | DIMENSIONS))
    random_weights.write(tmp_path, torch.bfloat16, seed=0)
    cell = load.check(values({"kind": "int8-rows"}), "r.yaml").backends[0]
    loaded = import_backend(cell).load(options(tmp_path), cell, None)
    predicted = Prediction(architecture(tmp_path), cell, CPU)
    assert predicted.weights().bits_per_weight == pytest.approx(loaded.effective_bits_per_weight)
    assert predicted.weights().total == pytest.approx(loaded.weight_bytes, rel=0.001)
    for batch_size, prompt in ((1, 24), (1, 256), (4, 240)):
        peak = predicted.generation_bytes(batch_size, prompt, 256)
        assert peak == pytest.approx(measured_peak(loaded, batch_size, prompt, 256), rel=0.02)


def test_a_kind_without_hooks_is_predicted_by_the_bits_of_its_codes(registry: Path) -> None:
    text = CLASS + "def load(*_):\n    pass\n"
    install(registry, "some-dist", {"x": "bare"}, {"bare": text})
    cell = load.check(values({"kind": "x"}), "r.yaml").backends[0]
    weights = Prediction(LLAMA, cell, Target("cuda", 2)).weights()
    assert weights.bits_per_weight == 4
    assert weights.embedding_bytes == Prediction(LLAMA, FP16(), Target("cuda", 2)).weights().embedding_bytes


def test_its_color_and_library_are_its_own(example: Path) -> None:
    first, second, reference = cell_styles(["int8-rows", "unknown", "fp16"])
    assert (first.edge, reference.edge) == ("#8c564b", "#7a7a7a")
    assert second.edge not in (first.edge, reference.edge)
    cls = backend_class("int8-rows")
    assert cls is not None
    assert cls.hub_library == "qbench"


def test_init_takes_it_by_name(example: Path) -> None:
    choice = choose(
        "llama-3-8b", environment.detect().model_copy(update={"gpus": (GPU(name="x", memory_bytes=2**37),)})
    )
    assert "int8-rows" not in choice.backends
    assert choice.with_backends(["fp16", "int8-rows"]).backends == ("fp16", "int8-rows")


CLASS = """
from typing import Literal
from qbench.config import Backend
class CONFIG(Backend):
    kind: Literal['x'] = 'x'
"""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import no_such_library", "broken cannot be imported: ModuleNotFoundError: No module named 'no_such_library'"),
        ("CONFIG = 1", "broken has no CONFIG that is a subclass of qbench.config.Backend"),
        (CLASS.replace("'x'", "'y'"), "broken.CONFIG needs `kind: Literal['x'] = 'x'`"),
        (CLASS.replace(" = 'x'", ""), "broken.CONFIG needs `kind: Literal['x'] = 'x'`"),
        (CLASS, "broken has no function `load`"),
    ],
)
def test_a_broken_plugin_is_named_with_its_distribution(registry: Path, text: str, words: str) -> None:
    install(registry, "some-dist", {"x": "broken"}, {"broken": text})
    with pytest.raises(QbenchError) as caught:
        load.check(values({"kind": "x"}), "r.yaml")
    assert words in str(caught.value)
    assert "some-dist 1.0" in str(caught.value)
    (found,) = backends.probe(["x"])
    assert found.reason
    assert found.remedy == "mend or reinstall some-dist, which registers it"


def test_a_kind_belongs_to_one_distribution(registry: Path) -> None:
    install(registry, "one", {"x": "one"}, {"one": CLASS})
    install(registry, "two", {"x": "two"}, {"two": CLASS})
    with pytest.raises(QbenchError, match="backend x: both one and two register it; uninstall one of them"):
        load.check(values({"kind": "x"}), "r.yaml")


def test_a_shipped_kind_cannot_be_registered(registry: Path) -> None:
    install(registry, "thief", {"int4": "thief"}, {"thief": CLASS})
    with pytest.raises(QbenchError, match="backend int4: thief registers a kind that qbench ships"):
        load.check(values({"kind": "x"}), "r.yaml")
    assert load.check(values({"kind": "int4"}), "r.yaml").backends[0].kind == "int4"


def test_init_names_an_option_that_it_cannot_guess(registry: Path) -> None:
    text = CLASS + "    rank: int\ndef load(*_):\n    pass\n"
    install(registry, "some-dist", {"x": "needy"}, {"needy": text})
    choice = choose("demo", environment.detect()).with_backends(["fp16", "x"])
    with pytest.raises(QbenchError, match="needs rank; write its configuration by hand"):
        starter.write(registry / "x.yaml", choice)
