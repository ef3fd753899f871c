from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qbench import configfile
from qbench.config import GPTQ, MMLUConfig, RunConfig
from qbench.errors import QbenchError

GOOD = """
name: r
model: {demo: true}
backends:
  - kind: fp16
  - kind: int4
  - {kind: gptq, label: gptq-act, desc_act: true}
measure:
  throughput: {batch_sizes: [1, 8], seq_len: 64, new_tokens: 8}
"""


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return write(tmp_path, GOOD)


def write(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text)
    return path


def message(path: Path, *overrides: str) -> str:
    with pytest.raises(QbenchError) as caught:
        configfile.load(path, overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            "seq_len: 64",
            "seqlen: 64",
            "measure.throughput.seqlen: unknown key; did you mean seq_len? (valid: seq_len, new_tokens,",
        ),
        ("desc_act: true", "desc_akt: true", "backends[2].desc_akt: unknown key; did you mean desc_act?"),
        ("name: r", "nmae: r", "nmae: unknown key; did you mean name?"),
        (
            "kind: int4",
            "kind: int5",
            "backends[1].kind: unknown backend 'int5'; did you mean int4? (valid: fp16, int4,",
        ),
        ("kind: int4", "group_size: 128", "backends[1].kind: is missing (one of fp16,"),
        ("seq_len: 64", "seq_len: many", "measure.throughput.seq_len: input should be a valid integer"),
        ("label: gptq-act", "label: int4", "label int4 is used twice"),
        ("model: {demo: true}", "", "model: is missing"),
        ("seq_len: 64", "seq_len: 8", "new_tokens (8) must be less than seq_len (8)"),
        ("name: r", "name: ../r", "name: string should match pattern"),
        ("name: r", "name: r\nname: s", "line 3: not valid YAML: found duplicate key"),
        ("[1, 8]", "[1, 8", "not valid YAML"),
        ("name: r", "name: !!python/object/apply:os.system [true]", "not valid YAML"),
    ],
)
def test_a_mistake_is_named_by_its_key_with_the_remedy(tmp_path: Path, old: str, new: str, words: str) -> None:
    assert old in GOOD
    assert words in message(write(tmp_path, GOOD.replace(old, new)))


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    told = message(write(tmp_path, GOOD.replace("name: r", "nmae: r").replace("int4", "int5")))
    assert "nmae" in told
    assert "int5" in told


@pytest.mark.parametrize(("text", "words"), [("", "found nothing"), ("- a", "found a list"), ("hello", "found a str")])
def test_a_file_that_is_no_configuration(tmp_path: Path, text: str, words: str) -> None:
    assert words in message(write(tmp_path, text))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "nothing.yaml: no such file" in message(tmp_path / "nothing.yaml")


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    assert "cannot be read as text" in message(path)


def test_overrides_reach_every_kind_of_place_with_the_types_of_the_yaml(good: Path) -> None:
    config = configfile.load(
        good,
        [
            "measure.throughput.batch_sizes=[2, 4]",
            "backends.int4.group_size=64",
            "backends.gptq-act.desc_act=false",
            "backends.0.label=reference",
            "measure.mmlu.data=/some/folder",
            "calibration.samples=3",
        ],
    )
    assert config.measure.throughput is not None
    assert config.measure.throughput.batch_sizes == (2, 4)
    assert config.backends[0].label == "reference"
    assert config.backends[1].group_size == 64  # type: ignore[union-attr]
    assert isinstance(config.backends[2], GPTQ)
    assert config.backends[2].desc_act is False
    assert config.measure.mmlu is not None
    assert config.measure.mmlu.data == "/some/folder"
    assert config.calibration.samples == 3


def test_an_empty_measure_means_its_defaults_and_false_means_none(tmp_path: Path) -> None:
    measure = configfile.load(write(tmp_path, GOOD + "  mmlu:\n"), ["measure.throughput=false"]).measure
    assert measure.mmlu == MMLUConfig()
    assert measure.throughput is None


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("measure.throughput.trails=5", "unknown key; did you mean trials?"),
        ("seed", "expected KEY=VALUE"),
        ("=5", "expected KEY=VALUE"),
        ("name.x=5", "single value"),
        ("name.x.y=5", "nothing can stand below"),
        ("backends.int3.group_size=5", "no element int3; did you mean int4? (there are: fp16, int4, gptq-act)"),
        ("seed=[", "--set seed"),
        ("seed=abc", "seed: input should be a valid integer"),
    ],
)
def test_a_wrong_override_is_named(good: Path, override: str, words: str) -> None:
    assert words in message(good, override)


yaml_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(key=st.sampled_from(sorted(RunConfig.model_fields)), value=yaml_values)
def test_whatever_stands_in_the_file_ends_in_a_configuration_or_in_a_message(key: str, value: object) -> None:
    data = {"name": "r", "model": {"demo": True}, "backends": [{"kind": "fp16"}], key: value}
    from pydantic import ValidationError

    try:
        RunConfig.model_validate(data)
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            assert configfile.describe(detail)
