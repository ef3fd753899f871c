import copy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qbench.config import load, matrix
from qbench.errors import QbenchError

BASE = """
name: r
model: {demo: true}
backends:
  - kind: fp16
  - kind: int4
  - {kind: gptq, label: mine}
measure:
  throughput: {batch_sizes: [1, 8], seq_len: 64, new_tokens: 8}
"""


def write(folder: Path, lines: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(f"{BASE}matrix:\n{lines}\n")
    return path


def message(path: Path, *overrides: str) -> str:
    with pytest.raises(QbenchError) as caught:
        matrix.load(path, overrides)
    return str(caught.value)


def test_a_path_into_a_cell_multiplies_that_cell_in_its_place(tmp_path: Path) -> None:
    lines = "  backends.int4.group_size: [32, -1]\n  backends.int4.search: [mse, none]\n  backends.mine.sym: [true]"
    (run,) = matrix.load(write(tmp_path, lines))
    assert run.name == "r"
    assert [(c.label, getattr(c, "group_size", None), getattr(c, "search", None)) for c in run.backends] == [
        ("fp16", None, None),
        ("int4-32-mse", 32, "mse"),
        ("int4-32-none", 32, "none"),
        ("int4--1-mse", -1, "mse"),
        ("int4--1-none", -1, "none"),
        ("mine-true", 128, None),
    ]


def test_any_other_path_multiplies_runs_and_the_last_varies_fastest(tmp_path: Path) -> None:
    model = "[{demo: true}, {path: ../models/Tiny Llama/}, {id: meta-llama/Llama-3, revision: main}]"
    lines = f"  model: {model}\n  dtype: [float16, bfloat16]\n  backends.int4.group_size: [32, 64]"
    runs = matrix.load(write(tmp_path, lines))
    assert [run.name for run in runs] == [
        "r-demo-float16",
        "r-demo-bfloat16",
        "r-Tiny-Llama-float16",
        "r-Tiny-Llama-bfloat16",
        "r-Llama-3-main-float16",
        "r-Llama-3-main-bfloat16",
    ]
    assert [run.dtype for run in runs] == ["float16", "bfloat16"] * 3
    assert runs[2].model.path == Path("../models/Tiny Llama/")
    assert all([c.label for c in run.backends] == ["fp16", "int4-32", "int4-64", "mine"] for run in runs)


def test_measures_are_varied_as_they_are_written(tmp_path: Path) -> None:
    lines = "  measure.throughput.batch_sizes: [[1], [1, 32]]\n  measure.generations: [false, true]"
    runs = matrix.load(write(tmp_path, lines))
    assert [run.name for run in runs] == ["r-1-false", "r-1-true", "r-1-32-false", "r-1-32-true"]
    assert [run.measure.generations is None for run in runs] == [True, False, True, False]


def test_without_a_matrix_there_is_one_run(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(BASE)
    assert matrix.load(path) == [load.load(path)]
    assert matrix.load(write(tmp_path, "  dtype: [float16]"), ["matrix=null"]) == matrix.load(path, ["matrix=null"])


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("  backends.int5.group_size: [32]", "no element int5; did you mean int4? (there are: fp16, int4, mine)"),
        ("  backends.int4.group_sise: [32]", "backends[1].group_sise: unknown key; did you mean group_size?"),
        ("  measure.thruput.trials: [1]", "run r-1 is not a valid configuration:\n  measure.thruput: unknown key"),
        ("  dtype: [float16, float61]", "run r-float61 is not a valid configuration"),
        ("  name.x: [1]", "name is a single value and has no key x"),
        ("  dtype: float16", "matrix.dtype: expected a list of values"),
        ("  dtype: []", "matrix.dtype: expected a list of values"),
        ("  dtype: [float16, float16]", "matrix.dtype: float16 is listed twice"),
        ("  model.path: [a/x, b/X]", "matrix.model.path: a/x and b/X would both be named x; rename one of them"),
        ("  model.path: [/]", "'/' gives no name for a folder"),
        ("  backends: [[{kind: fp16}]]", "matrix.backends: cannot be varied"),
        ("  backends.int4: [{kind: nf4}]", "matrix.backends.int4: cannot be varied"),
        ("  backends.int4.label: [a, b]", "cannot be varied; names and labels are made of the values"),
        ("  name: [a, b]", "matrix.name: cannot be varied"),
        ("  model: [{demo: true}]\n  model.revision: [a]", "model.revision is a part of model; vary one of them"),
        ("  - dtype", "matrix: expected dotted paths with lists of values"),
        ("  backends.mine.label: [x]", "cannot be varied"),
        (f"  seed: {list(range(101))}", "matrix: makes 101 runs of 3 cells; at most 100 runs and 500 cells in all"),
        (f"  seed: {list(range(90))}\n  backends.int4.group_size: [1, 2, 3, 4]", "makes 90 runs of 6 cells"),
        (f"  backends.int4.group_size: {list(range(1, 502))}", "makes more than 500 cells of int4"),
    ],
)
def test_a_mistake_is_named_with_the_remedy(tmp_path: Path, lines: str, words: str) -> None:
    assert words in message(write(tmp_path, lines))


def test_a_cell_that_is_there_already_is_not_made_twice(tmp_path: Path) -> None:
    path = write(tmp_path, "  backends.int4.group_size: [32]")
    path.write_text(path.read_text().replace("label: mine", "label: int4-32"))
    assert "label int4-32 is used twice" in message(path)


def test_an_axis_can_be_set_and_what_it_varies_cannot(tmp_path: Path) -> None:
    path = write(tmp_path, "  dtype: [float16, bfloat16]\n  model: [{demo: true}]")
    (run,) = matrix.load(path, ["matrix.dtype=[float32]", "name=s", "seed=5"])
    assert (run.name, run.dtype, run.seed) == ("s-float32-demo", "float32", 5)
    labels = [c.label for c in matrix.load(path, ["matrix.backends.int4.group_size=[16]"])[0].backends]
    assert labels == ["fp16", "int4-16", "mine"]
    assert "--set dtype: the matrix varies dtype; use --set 'matrix.dtype=[…]'" in message(path, "dtype=float32")
    assert "--set model.revision: the matrix varies model" in message(path, "model.revision=x")


def test_commands_of_one_run_refuse_a_matrix(tmp_path: Path) -> None:
    path = write(tmp_path, "  dtype: [float16, bfloat16]")
    with pytest.raises(QbenchError, match="makes several runs, and this takes one; add --set matrix=null"):
        load.load(path)
    assert load.load(path, ["matrix=null"]).name == "r"


def test_a_misspelt_matrix_is_an_unknown_key(tmp_path: Path) -> None:
    path = write(tmp_path, "  dtype: [float16]")
    path.write_text(path.read_text().replace("matrix", "matrx"))
    assert "matrx: unknown key; did you mean matrix?" in message(path)


scalars = st.none() | st.booleans() | st.integers(-5, 5) | st.floats(0, 1) | st.text("ab/.- é", max_size=4)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text("ab"), inner))
paths = st.sampled_from(["dtype", "model", "model.path", "backends.int4.bits", "backends.fp16.python", "seed", "x.y"])


@given(axes=st.dictionaries(paths, st.lists(values, min_size=1, max_size=3), min_size=1, max_size=3))
def test_every_combination_is_there_once_under_a_name_of_its_own_and_nothing_is_changed(axes: dict[str, Any]) -> None:
    data = {"name": "r", "model": {}, "backends": [{"kind": "fp16"}, {"kind": "int4"}], "matrix": axes}
    before = copy.deepcopy(data)
    try:
        runs = matrix.expand(data)
    except QbenchError:
        return
    finally:
        assert data == before
    counts = {path: len(values) for path, values in axes.items()}
    cells = [counts.pop(path, 1) for path in ("backends.fp16.python", "backends.int4.bits")]
    expected = 1
    for count in counts.values():
        expected *= count
    assert len({run["name"].lower() for run in runs}) == len(runs) == expected
    for run in runs:
        labels = [str(cell.get("label") or cell["kind"]).lower() for cell in run["backends"]]
        assert len(set(labels)) == len(labels) == sum(cells)
        assert "matrix" not in run
