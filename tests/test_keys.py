"""What a figure depends on changes its key; what it does not, does not."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from qbench.config import RunConfig, load
from qbench.machine import environment
from qbench.run import fingerprint as keys
from tests.support.made_up_run import environment as machine

BASE: dict[str, Any] = {
    "name": "r",
    "model": {"demo": True},
    "backends": [{"kind": "fp16"}, {"kind": "int4"}, {"kind": "awq"}],
    "measure": {
        "throughput": {"batch_sizes": [1, 8], "trials": 2},
        "mmlu": {"data": "demo"},
        "noise_floor": {},
        "tasks": {"names": ["piqa", "niah_single_1"]},
        "perplexity": {},
    },
}
"""Every measure that is kept in units."""


def units(label: str, *overrides: str, fingerprint: str = "f") -> dict[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "base.yaml"
        path.write_text(yaml.safe_dump(BASE))
        config = load.load(path, overrides)
    backend = next(backend for backend in config.backends if backend.label == label)
    return keys.units(config, backend, machine(), fingerprint)


def test_units_are_trials_tasks_and_whole_measures_in_order() -> None:
    trials = [f"throughput/b{size}/t{trial}" for size in (1, 8) for trial in (0, 1)]
    common = ["cell", *trials, "mmlu", "tasks/piqa", "tasks/niah_single_1@4096", "perplexity"]
    assert list(units("int4")) == common
    assert list(units("fp16")) == [*common, "noise_floor"]
    assert len(set(units("fp16").values())) == len(common) + 1


@pytest.mark.parametrize(
    ("override", "touched"),
    [
        ("seed=1", "all"),
        ("dtype=float32", "all"),
        ("threads=2", "all"),
        ("backends.int4.group_size=64", "all"),
        ("backends.int4.search=none", "all"),
        ("measure.throughput.new_tokens=64", "throughput"),
        ("measure.throughput.warmup=3", "throughput"),
        ("measure.throughput.kv_cache=int8", "throughput"),
        ("measure.mmlu.num_fewshot=0", "mmlu"),
        ("measure.mmlu.engine=stock", "mmlu"),
        ("measure.perplexity.window=128", "perplexity"),
        ("measure.memory.seq_len=64", "cell"),
        ("backends.fp16.label=sixteen", ""),
        ("backends.awq.group_size=32", ""),
        ("calibration.samples=7", ""),
        ("timeout_s=5", ""),
        ("name=other", ""),
        ("cache=false", ""),
        ("measure.throughput.trials=5", ""),
        ("measure.throughput.batch_sizes=[1,8,64]", ""),
        ('measure.tasks.names=["piqa","niah_single_1","hellaswag"]', ""),
        ("measure.tasks.context_lengths=[4096,8192]", ""),
    ],
)
def test_a_setting_changes_the_keys_that_depend_on_it_and_no_other(override: str, touched: str) -> None:
    before, after = units("int4"), units("int4", override)
    assert set(before) <= set(after)
    others = {name for name in before if before[name] != after[name]}
    expected = before if touched == "all" else {n for n in before if touched and n.partition("/")[0] == touched}
    assert others == set(expected)


def test_calibration_counts_where_it_is_used() -> None:
    assert units("awq") != units("awq", "calibration.samples=7")


def test_the_noise_floor_depends_on_the_evaluation_that_it_repeats() -> None:
    assert units("fp16")["noise_floor"] != units("fp16", "measure.mmlu.batch_size=2")["noise_floor"]


def test_another_model_changes_everything() -> None:
    assert not set(units("int4").values()) & set(units("int4", fingerprint="g").values())


def test_a_text_counts_by_its_content(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("one")
    before = units("awq", f"calibration.text={text}", f"measure.perplexity.text={text}")
    assert before == units("awq", f"calibration.text={text}", f"measure.perplexity.text={text}")
    text.write_text("two")
    after = units("awq", f"calibration.text={text}", f"measure.perplexity.text={text}")
    assert before["cell"] != after["cell"]
    assert before["perplexity"] != after["perplexity"]


def test_versions_count_for_what_the_libraries_measure() -> None:
    config = RunConfig.model_validate(BASE)
    fp16 = config.backends[0]
    old, new = (
        machine().model_copy(update={"versions": {"torch": "2.12", "lm_eval": version, "gptqmodel": version}})
        for version in ("1", "2")
    )
    before, after = (keys.units(config, fp16, where, "f") for where in (old, new))
    assert {name.partition("/")[0] for name in before if before[name] != after[name]} == {
        "mmlu", "tasks", "noise_floor",
    }  # fmt: skip
    assert keys.changed(keys.run_facts(config, old, "f"), keys.run_facts(config, new, "f")) == [
        "versions.gptqmodel: '1' there, '2' now",
        "versions.lm_eval: '1' there, '2' now",
    ]


def test_what_makes_the_prompts_of_needle_tasks_counts_for_them_alone() -> None:
    config = RunConfig.model_validate(BASE)
    old, new = (machine().model_copy(update={"versions": {"wonderwords": version}}) for version in ("1", "2"))
    before, after = (keys.units(config, config.backends[0], where, "f") for where in (old, new))
    assert [name for name in before if before[name] != after[name]] == ["tasks/niah_single_1@4096"]


def test_another_interpreter_counts_by_its_own_libraries(tmp_path: Path) -> None:
    site = tmp_path / "lib" / "python3.12" / "site-packages"
    (site / "bitsandbytes-0.1.dist-info").mkdir(parents=True)
    (site / "bitsandbytes-0.1.dist-info" / "METADATA").write_text("Name: bitsandbytes\nVersion: 0.1\n")
    (site / "qbench_llm-0.0.9.dist-info").mkdir()
    (site / "qbench_llm-0.0.9.dist-info" / "METADATA").write_text("Name: qbench-llm\nVersion: 0.0.9\n")
    (site / "qbench-1.0.2.dist-info").mkdir()  # another project of that name
    (site / "qbench-1.0.2.dist-info" / "METADATA").write_text("Name: qbench\nVersion: 1.0.2\n")
    (tmp_path / "bin").mkdir()
    assert environment.versions_of(tmp_path / "bin" / "python") == {"bitsandbytes": "0.1", "qbench": "0.0.9"}
    assert environment.versions_of(tmp_path / "elsewhere" / "bin" / "python") == {}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.text(), json_values, min_size=1), st.data())
def test_a_key_is_that_of_the_facts_whatever_their_order(facts: dict[str, Any], data: st.DataObject) -> None:
    shuffled = dict(data.draw(st.permutations(list(facts.items()))))
    assert keys.key(facts) == keys.key(shuffled)
    name = data.draw(st.sampled_from(list(facts)))
    other = data.draw(json_values.filter(lambda value: repr(value) != repr(facts[name])))
    assert (keys.key(facts | {name: other}) == keys.key(facts)) == (keys.changed(facts, facts | {name: other}) == [])


def test_what_is_new_is_no_change_and_what_is_gone_is() -> None:
    assert keys.changed({"a": 1}, {"a": 1, "b": 2}) == []
    assert keys.changed({"a": 1, "b": 2}, {"a": 3}) == ["a: 1 there, 3 now", "b: 2 there, not here now"]
