import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from qbench.backends.gptq import GPTQ
from qbench.config import MeasureConfig, MMLUConfig, RunConfig, load
from qbench.config.base import NAME_PATTERN
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
        load.load(path, overrides)
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
            "kind: imt4",
            "backends[1].kind: unknown backend 'imt4'; did you mean int4? (valid: fp16, int4,",
        ),
        ("kind: int4", "group_size: 128", "backends[1].kind: is missing (one of fp16,"),
        ("- kind: int4", "- int4", "backends[1]: expected a kind with its keys, e.g. {kind: fp16}, not 'int4'"),
        ("model: {demo: true}", "model: demo", "model: expected keys with values (valid: id, path, demo,"),
        ("[1, 8]", "1", "measure.throughput.batch_sizes: expected a list, not 1"),
        ("seq_len: 64", "seq_len: many", "measure.throughput.seq_len: input should be a valid integer, not 'many'"),
        (
            "kind: int4",
            "kind: int4\n    group_size: -7",
            "\n  backends[1].group_size: input should be greater than or equal to 1, or -1, or 0, not -7",
        ),
        ("label: gptq-act", "label: int4", "label int4 is used twice"),
        ("model: {demo: true}", "", "model: is missing"),
        ("seq_len: 64", "seq_len: 8", "new_tokens (8) must be less than seq_len (8)"),
        ("name: r", "name: ../r", "name: expected a letter or digit, then letters, digits, '.', '_' or '-', not"),
        ("name: r", "name: r\ndevice: gpu", "device: expected auto, cpu, cuda, or a GPU such as cuda:1, not 'gpu'"),
        ("name: r", "name: r\nname: s", "line 3: not valid YAML: found duplicate key"),
        ("[1, 8]", "[1, 8", "not valid YAML"),
        ("name: r", "name: !!python/object/apply:os.system [true]", "not valid YAML"),
    ],
)
def test_a_mistake_is_named_by_its_key_with_the_remedy(tmp_path: Path, old: str, new: str, words: str) -> None:
    assert old in GOOD
    assert words in message(write(tmp_path, GOOD.replace(old, new)))


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    told = message(write(tmp_path, GOOD.replace("name: r", "nmae: r").replace("int4", "imt4")))
    assert "nmae" in told
    assert "imt4" in told


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
    config = load.load(
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
    measure = load.load(write(tmp_path, GOOD + "  mmlu:\n"), ["measure.throughput=false"]).measure
    assert measure.mmlu == MMLUConfig()
    assert measure.throughput is None


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("measure.throughput.trails=5", "unknown key; did you mean trials?"),
        ("seed", "expected KEY=VALUE"),
        ("=5", "expected KEY=VALUE"),
        ("name.x=5", "single value"),
        ("name.x.y=5", "is not a section"),
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


@st.composite
def junk_files(draw: st.DrawFn) -> str:
    """A configuration in which something is anything, in a place that the schema knows."""
    data: Any = {
        "name": "r",
        "model": {"demo": True},
        "backends": [{"kind": "fp16"}, {"kind": "int4"}],
        "calibration": {"samples": 3},
        "measure": {name: {} for name in MeasureConfig.model_fields if name != "tasks"},
    }
    place = data
    while isinstance(place, dict | list):
        keys = list(place) if isinstance(place, dict) else range(len(place))
        known = [] if place is not data["measure"] else ["tasks"]
        key = draw(st.sampled_from([*keys, *known]) if keys else st.text(max_size=8))
        inner = place[key] if isinstance(place, list) else place.get(key)
        if not isinstance(inner, dict | list) or draw(st.booleans()):
            place[key] = draw(yaml_values)
            break
        place = inner
    return json.dumps(data, ensure_ascii=draw(st.booleans()))


yaml_words = st.lists(
    st.sampled_from([*" \n:-?[]{},&*!#|>'\"%@`~", "a", "&a ", "*a", "<<: ", "- ", ": ", "\n  ", "!!set ", "!!omap ",
    "0x", "1e9", ".inf", ".nan", "2001-99-99", "null", "---\n", "name: r\n", "\\0", "\0", "\x1b", "9" * 5000]),
    max_size=12,
).map("".join)  # fmt: skip
"""Texts of what has a meaning in YAML."""


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300)
@given(text=junk_files() | yaml_words | yaml_words.map("name: r\nmodel: {demo: true}\nbackends:\n  - ".__add__))
def test_whatever_stands_in_the_file_ends_in_a_configuration_or_in_a_message(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    told = ""
    try:
        assert isinstance(load.load(path), RunConfig)
    except QbenchError as error:
        told = str(error)
    first, *more = told.split("\n")
    assert not told or first.startswith(str(path))
    assert all(line.startswith("  ") and ": " in line for line in more)
    assert told.replace("\n", "").isprintable()


@settings(deadline=None)
@given(key=st.text(max_size=12), value=yaml_words)
def test_whatever_is_set_ends_in_a_configuration_or_in_a_message(key: str, value: str) -> None:
    shipped = Path(__file__).parents[1] / "configs" / "smoke.yaml"
    with suppress(QbenchError):
        assert isinstance(load.load(shipped, [f"{key}={value}"]), RunConfig)


counts = st.integers(1, 10**6)
paths = st.text(st.characters(categories=["L", "N", "P", "S", "Zs"]), min_size=1, max_size=20).map("/x".__add__)
labels = st.from_regex(NAME_PATTERN.replace("*$", "{0,79}$").replace("$", r"\Z"))


def sections(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A section with some of its keys."""
    return st.fixed_dictionaries({}, optional=fields)


def backends() -> st.SearchStrategy[list[dict[str, Any]]]:
    own = {
        "fp16": {},
        "int4": {
            "group_size": st.sampled_from([-1, 0, 1, 128]),
            "bits": st.sampled_from([3, 4, 8]),
            "checkpoint": paths,
            "symmetric": st.booleans(),
        },
        "nf4": {"double_quant": st.booleans()},
        "awq": {"group_size": st.sampled_from([64, 32]), "checkpoint": st.none() | paths},
        "gptq": {"desc_act": st.booleans(), "sym": st.booleans()},
        "gguf": {"quant": st.sampled_from(["Q4_K_M", "F16"])},
    }
    kinds = [st.tuples(st.just({"kind": kind}), sections(python=paths, **fields)) for kind, fields in own.items()]
    one = st.builds(lambda parts, label: parts[0] | parts[1] | {"label": label}, st.one_of(kinds), labels)
    return st.lists(one, min_size=1, max_size=4, unique_by=lambda backend: str(backend["label"]).lower())


valid = st.fixed_dictionaries(
    {
        "name": labels,
        "model": st.just({"demo": True})
        | st.builds(lambda path, trust: {"path": path, "trust_remote_code": trust}, paths, st.booleans())
        | st.just({"id": "a/b", "revision": "main"}),
        "backends": backends(),
    },
    optional={
        "device": st.sampled_from(["auto", "cpu", "cuda", "cuda:3"]),
        "dtype": st.sampled_from(["auto", "float16", "bfloat16", "float32"]),
        "seed": st.integers(0, 2**63 - 1),
        "threads": st.none() | counts,
        "timeout_s": st.floats(0, exclude_min=True, allow_infinity=False),
        "calibration": sections(text=paths, samples=counts),
        "measure": sections(
            throughput=sections(batch_sizes=st.sets(counts, min_size=1, max_size=4).map(sorted), trials=counts),
            mmlu=sections(subjects=st.lists(paths, min_size=1, max_size=3), limit=counts, data=paths),
            generations=sections(prompts=st.lists(st.text("a\n\t'\"#: é%", min_size=1), min_size=1, max_size=3)),
            perplexity=st.fixed_dictionaries({"divergence": st.just(False)}, optional={"text": paths}),
            tasks=st.just({"names": ["piqa"], "data": {"piqa": "/data/piqa"}}),
        ),
    },
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(data=valid)
def test_a_configuration_that_is_written_out_is_read_as_the_same(tmp_path: Path, data: dict[str, Any]) -> None:
    config = RunConfig.model_validate(data)
    with (tmp_path / "config.yaml").open("w", encoding="utf-8") as file:
        # In a file a measure without a value means its defaults.
        YAML(typ="safe").dump(config.model_dump(mode="json", exclude_none=True), file)
    assert load.load(tmp_path / "config.yaml") == config


NINES = ", ".join(["*a{0}"] * 9)
LAUGHS = "a0: &a0 [ha]\n" + "".join(f"a{i + 1}: &a{i + 1} [{NINES.format(i)}]\n" for i in range(20))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (GOOD + LAUGHS, "holds more than 100,000 values, aliases counted each time"),
        (GOOD + "seed: &a [*a]", "holds more than 100,000 values"),
        (GOOD + "#" * 10**8, "is larger than 256 KiB, so it is no configuration"),
        (GOOD + "seed: " + "[" * 9999 + "]" * 9999, "values are nested too deeply"),
        (GOOD + "seed: 2001-99-99", "month must be in 1..12; quote what is a text"),
        (GOOD + "seed: 0x" + "f" * 9999, "does not fit into 64 bits"),
        (GOOD.replace("demo: true", 'path: "a\\0"'), r"'a\x00' holds a character that no file can"),
        (GOOD.replace("demo: true", 'path: "\\ud800"'), r"'\ud800' holds a character that no file can"),
        (GOOD + "timeout_s: .inf", "timeout_s: input should be a finite number, not inf"),
        (GOOD + r'"a\e[2Jb": 1', r"a\x1b[2Jb: unknown key"),
    ],
)  # fmt: skip
def test_a_file_that_would_hang_fill_or_confuse_is_refused(tmp_path: Path, text: str, words: str) -> None:
    assert words in message(write(tmp_path, text))
