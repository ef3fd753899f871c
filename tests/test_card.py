from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from qbench.config import load
from qbench.errors import QbenchError
from qbench.records.rows import GenerationRow
from qbench.records.run import read_run
from qbench.show.card import make_card, read_generations
from tests.support.made_up_run import FIVE_ANSWERS, MODEL, cell, five_cells, identity, made_up_run, measured, text
from tests.support.markdown import read

PUBLISHED = Path(__file__).parent.parent / "results" / "published"
SMOKE = PUBLISHED / "smoke-xeon-2core"


def test_the_hubs_library_reads_the_front_matter() -> None:
    run = read_run(SMOKE)
    card = ModelCard(make_card(run, "int4", []).text)
    data = card.data.to_dict()
    assert (data["library_name"], data["pipeline_tag"]) == ("qbench", "text-generation")
    assert data["tags"] == ["quantized", "4-bit", "int4", "qbench"]
    assert data["quantization"]["group_size"] == 128
    assert data["quantization"]["effective_bits_per_weight"] == 4.25
    assert "base_model" not in data, "the demo model is not on the hub"
    result, perplexity = card.data.eval_results or []
    assert (perplexity.metric_type, perplexity.metric_value) == ("perplexity", pytest.approx(2.1042, abs=1e-4))
    assert (result.metric_type, result.metric_value) == ("accuracy", pytest.approx(2390 / 2400, abs=1e-5))
    assert result.metric_args == {"confidence_interval_95": [0.99235, 0.99774]}
    assert result.dataset_name == "The demo model's questions"


def test_a_model_of_the_hub_is_the_base_model() -> None:
    run = made_up_run([*five_cells(), text("int4", 6.2)], answers=FIVE_ANSWERS)
    run.record.config["model"] = {"id": MODEL}
    run.record.config["backends"] = [
        {"kind": "fp16", "label": "fp16"},
        {"kind": "int4", "label": "int4", "python": "/x"},
    ]
    card = ModelCard(make_card(run, "int4", []).text)
    data = card.data.to_dict()
    assert (data["base_model"], data["base_model_relation"]) == (MODEL, "quantized")
    assert data["quantization"] == {"method": "int4", "bits": 4}
    accuracy, perplexity = card.data.eval_results or []
    assert (accuracy.dataset_type, accuracy.dataset_config, accuracy.metric_value) == ("cais/mmlu", "all", 0.64962)
    assert (perplexity.dataset_type, perplexity.metric_value) == ("Salesforce/wikitext", 6.2)


def test_figures_stand_beside_those_of_16_bit_with_intervals() -> None:
    body = make_card(made_up_run(five_cells(), answers=FIVE_ANSWERS), "int4", []).body
    assert "| figure | this checkpoint | 16 bit |" in body
    assert "| decode speed at batch 1 | 98.0 tokens/s, 2.33× [" in body
    assert "| decode speed at batch 32 | 1,502.0 tokens/s | oom |" in body
    assert "| peak memory, first forward | 5.74 GiB | 15.93 GiB |" in body
    shown = read(body).text
    assert "worse by 1.3 points [0.9, 1.7], p < 0.001" in shown
    # (2.394 + 0.8416) × √(582 ÷ 14042) ÷ √14042, of three cells that are compared.
    assert "| smallest difference that would have shown, points | 0.56 |" in body


def test_what_the_card_says_to_run_is_a_valid_configuration(tmp_path: Path) -> None:
    body = make_card(read_run(SMOKE), "int4", []).body
    [block] = re.findall(r"```yaml\n(.*?)\n```", body, re.DOTALL)
    (tmp_path / "card.yaml").write_text(block)
    config = load.load(tmp_path / "card.yaml", ())
    assert [backend.label for backend in config.backends] == ["fp16", "int4"]
    assert config.measure.throughput
    assert config.measure.throughput.batch_sizes == (1, 8, 32)


def test_limits_are_said() -> None:
    assert "The demo model knows a made-up world" in make_card(read_run(SMOKE), "int4", []).body
    shape = make_card(read_run(PUBLISHED / "tinyllama-shape-xeon-2core"), "int4", [])
    assert "The weights are random" in shape.body
    assert "Accuracy was not measured" in shape.body
    assert "model-index" not in shape.metadata


def test_a_partial_accuracy_is_left_out_unless_asked_for() -> None:
    run = made_up_run(measured("int4", "int4", 6, {}, 60, 100, partial=True))
    assert "model-index" not in make_card(run, "int4", []).metadata
    asked = make_card(run, "int4", [], allow_partial=True)
    [result] = ModelCard(asked.text).data.eval_results or []
    assert result.metric_name == "accuracy over a part of the questions"
    assert ", partial" in asked.body


def test_generations_are_shown_as_they_are() -> None:
    found = [one for one in read_generations(SMOKE) if one.label == "int4"]
    shown = read(make_card(read_run(SMOKE), "int4", read_generations(SMOKE)).body).text
    assert f"{found[0].prompt} ▸{found[0].text}" in shown
    assert len(found) == 5


def test_hostile_texts_become_neither_front_matter_nor_markup() -> None:
    evil = "x\n---\nlicense: mit\n<script>alert(1)</script> [a](javascript:1) ![b](c) | d"
    run = made_up_run(
        [cell("int4", kernel=evil, weight_bytes=5), *measured("fp16", "fp16", 6, {}, 60, 100)], model=evil
    )
    run.record.config["backends"] = [{"kind": "int4", "label": "int4", "search": evil}]
    run.record.config["name"] = "```\n<script>alert(2)</script>"
    record = run.record.model_copy(update={"command": f"qbench run `{evil}`"})
    own = GenerationRow(**identity("int4"), prompt=evil, text="</pre><script>alert(3)</script>\n\n# x", token_ids=(1,))
    card = make_card(dataclasses.replace(run, record=record), "int4", [own])
    front, body = re.match(r"---\n(.*?)\n---\n(.*)", card.text, re.DOTALL).groups()  # type: ignore[union-attr]
    assert set(yaml.safe_load(front)) == {"library_name", "pipeline_tag", "tags", "quantization"}
    assert yaml.safe_load(front)["quantization"]["search"] == evil
    found = read(body)
    assert not found.tags & {"script", "a", "img"}
    assert found.tags <= {"h1", "h2", "p", "table", "thead", "tbody", "tr", "th", "td", "ul", "li", "pre", "code"}


@pytest.mark.parametrize(
    ("label", "words"),
    [("int8", "no such cell; did you mean int4"), ("awq", "the cell ended unavailable; a card needs one that is ok")],
)
def test_a_cell_that_is_not_there_or_failed_has_no_card(label: str, words: str) -> None:
    with pytest.raises(QbenchError, match=words):
        make_card(made_up_run(five_cells()), label, [])


def test_a_damaged_line_of_generations_is_named(tmp_path: Path) -> None:
    assert read_generations(tmp_path) == []
    (tmp_path / "generations.jsonl").write_text("{}\n")
    with pytest.raises(QbenchError, match=r"generations\.jsonl: a line is damaged"):
        read_generations(tmp_path)
