import json
from pathlib import Path

import pytest
from rich.console import Console

from qbench.config import RunConfig
from qbench.errors import QbenchError
from qbench.machine import environment
from qbench.machine.environment import GPU, Environment
from qbench.plan import cells as plan
from qbench.plan import forecast
from qbench.show import forecast as forecast_table
from tests.support.runs import run_config

GIB = 2**30
TIMED = {"throughput": {"batch_sizes": [1, 8, 32], "seq_len": 2048, "new_tokens": 128, "trials": 3, "warmup": 1}}
REAL = {"id": "meta-llama/Meta-Llama-3-8B-Instruct"}
SIX = [{"kind": kind} for kind in ("fp16", "int4", "nf4", "awq", "gptq")] + [{"kind": "int4", "label": "again"}]


@pytest.fixture(scope="module")
def laptop() -> Environment:
    return environment.detect().model_copy(update={"gpus": (), "memory_bytes": 16 * GIB})


@pytest.fixture
def server(laptop: Environment) -> Environment:
    return laptop.model_copy(update={"gpus": (GPU(name="NVIDIA A100-SXM4-80GB", memory_bytes=80 * GIB),)})


def llama(**changes: object) -> RunConfig:
    model = {"shape": "llama-3-8b", "weights": "random"}
    return run_config(**{"model": model, "backends": SIX, "measure": TIMED} | changes)


def printed(found: forecast.Forecast) -> str:
    console = Console(width=160, no_color=True)
    with console.capture() as capture:
        forecast_table.show(console, found)
    return capture.get()


def test_cells_stand_in_the_order_in_which_they_will_run(laptop: Environment) -> None:
    for seed in range(4):
        config = llama(seed=seed)
        found = forecast.make(config, laptop, rate=1e9)
        assert [cell.label for cell in found.cells] == [cell.label for cell in plan.shuffle(config, config.backends)]
    assert [cell.label for cell in forecast.make(llama(), laptop, only=["nf4"], rate=1e9).cells] == ["nf4"]
    with pytest.raises(QbenchError, match="no such cell"):
        forecast.make(llama(), laptop, only=["int5"], rate=1e9)


def test_what_fits_8_billion_parameters_in_24_gib_of_a_gpu(laptop: Environment) -> None:
    found = forecast.make(llama(device="cuda"), laptop, memory_bytes=24 * GIB, rate=1e12)
    cells = {cell.label: cell for cell in found.cells}
    # 16.06 GB of weights and 32 x 2048 tokens of 128 KiB are 25.6 GB.
    assert [batch.fits for batch in cells["fp16"].batches] == ["yes", "yes", "no"]
    assert cells["fp16"].fits == "yes"
    assert cells["fp16"].load_bytes is None
    assert [batch.fits for batch in cells["nf4"].batches][:2] == ["yes", "yes"]
    text = printed(found)
    assert "fp16 does not fit: batch 32" in text
    assert "will not run here: device: cuda, but no NVIDIA GPU is visible here" in text
    assert "24.00 GiB (given)" in text
    assert "1,000 GB/s (given)" in text


def test_a_gpu_is_known_by_its_data_sheet(server: Environment) -> None:
    found = forecast.make(llama(), server)
    assert (found.device, found.dtype, found.memory_bytes) == ("cuda", "float16", 80 * GIB)
    assert found.bandwidth_bytes_per_s == 2.039e12
    assert "data sheet of NVIDIA A100" in found.bandwidth_source


def test_several_gpus_hold_a_model_together_and_replay_no_graph(server: Environment) -> None:
    two = server.model_copy(update={"gpus": server.gpus * 2})
    one, spread = (forecast.make(llama(device_map=how), two) for how in ("none", "auto"))
    assert (one.memory_bytes, spread.memory_bytes) == (80 * GIB, 160 * GIB)
    rates = [run.cells[0].batches[-1].decode_tokens_per_s for run in (one, spread)]
    assert rates[0] < rates[1]


def test_a_compiled_step_reads_a_cache_of_one_length_on_a_cpu_whatever_a_graph_can_capture(laptop: Environment) -> None:
    cells, timed = [{"kind": "int8"}], TIMED["throughput"]
    eager, compiled = (
        forecast.make(
            llama(backends=cells, measure={"throughput": timed | {"decode": how}}), laptop, rate=1e9
        ).cells[0].batches[-1].decode_tokens_per_s
        for how in ("eager", "compiled")
    )  # fmt: skip
    assert eager is not None
    assert compiled is not None
    assert compiled < eager


def test_an_unknown_gpu_has_no_speed_and_says_what_to_give(server: Environment) -> None:
    other = server.model_copy(update={"gpus": (GPU(name="NVIDIA Future", memory_bytes=GIB),)})
    found = forecast.make(llama(), other)
    assert found.bandwidth_bytes_per_s is None
    assert all(batch.decode_tokens_per_s is None for cell in found.cells for batch in cell.batches)
    text = printed(found)
    assert "give --bandwidth" in text
    assert "tokens/s, at most" not in text


def test_without_a_gpu_its_memory_has_to_be_given(laptop: Environment) -> None:
    found = forecast.make(llama(device="cuda"), laptop)
    assert found.memory_bytes is None
    assert {cell.fits for cell in found.cells} == {None}
    assert "give --memory" in printed(found)


def test_loading_may_not_fit_where_the_quantized_model_would(laptop: Environment) -> None:
    """bitsandbytes and gptqmodel quantize a 16-bit model of 16 GB, int4 reads it tensor by tensor."""
    cells = {cell.label: cell for cell in forecast.make(llama(), laptop, rate=1e9).cells}
    assert {label: cells[label].load_fits for label in ("int4", "nf4", "awq")} == {
        "int4": "yes", "nf4": "no", "awq": "no",
    }  # fmt: skip
    assert {cells[label].fits for label in ("int4", "nf4", "awq")} == {"yes"}
    assert "nf4 does not fit: loading" in printed(forecast.make(llama(), laptop, rate=1e9))


def test_a_tight_fit_leaves_no_margin() -> None:
    assert forecast.fit(10 * GIB, 12 * GIB) == "yes"
    assert forecast.fit(10 * GIB, 11 * GIB) == "tight"
    assert forecast.fit(10 * GIB, 10 * GIB - 1) == "no"
    assert forecast.fit(10 * GIB, None) is None


def test_speeds_are_ceilings_and_decoding_takes_at_least_so_long(laptop: Environment) -> None:
    cells = {cell.label: cell for cell in forecast.make(llama(), laptop, rate=100e9).cells}
    one = cells["fp16"].batches[0]
    # A step reads 15.0 GB of weights (16.06 less the input embedding) and about 0.26 GB of cache.
    assert one.decode_tokens_per_s == pytest.approx(100 / 15.27, rel=0.01)
    assert one.decode_s == pytest.approx(4 * 127 * 15.27 / 100, rel=0.01)
    assert cells["int4"].batches[0].decode_tokens_per_s == pytest.approx(100 / 5.0, rel=0.05)


def test_a_graphs_cache_is_read_whole(laptop: Environment) -> None:
    rates = {}
    for decode in ("eager", "graph"):
        measure = {"throughput": {**TIMED["throughput"], "decode": decode}}
        found = forecast.make(llama(device="cuda", measure=measure), laptop, rate=1e12)
        rates[decode] = found.cells[0].batches[-1].decode_tokens_per_s
    assert rates["graph"] < rates["eager"]


def test_a_quantized_cache_is_smaller_and_read_sooner(laptop: Environment) -> None:
    """32 layers x 8 heads x 128 channels: 128 KiB a token in 16 bit, and 8.5 or 4.5 of 16 bits of that."""
    batches = {}
    for kind in ("16bit", "int8", "int4"):
        measure = {"throughput": {**TIMED["throughput"], "kv_cache": kind}}
        found = forecast.make(llama(device="cuda", measure=measure), laptop, rate=1e12)
        batches[kind] = next(cell for cell in found.cells if cell.label == "int4").batches[-1]
    tokens = 32 * 2048 * 2**17
    # Of 2,047 tokens in the cache, all after the prompt stand in 16 bit: there are fewer than 128.
    left = TIMED["throughput"]["new_tokens"] - 1
    shares = [(2047 - left) * bits / 16 + left for bits in (8.5, 4.5)]
    assert [batches[kind].cache_bytes for kind in batches] == [tokens, *(tokens * share / 2048 for share in shares)]
    assert batches["int4"].peak_memory_bytes < batches["int8"].peak_memory_bytes < batches["16bit"].peak_memory_bytes
    rates = [batch.decode_tokens_per_s for batch in batches.values()]
    assert rates == sorted(rates)


def test_every_measure_is_named_and_counted(laptop: Environment) -> None:
    measure = {"throughput": {"batch_sizes": [1, 2], "seq_len": 64, "new_tokens": 8, "trials": 5}} | {
        "sustained": {"seq_len": 64, "new_tokens": 8, "batch_size": 4}, "mmlu": {"data": "demo"}, "perplexity": {},
    }  # fmt: skip
    found = forecast.make(run_config(measure=measure), laptop, rate=1e9)
    (cell,) = found.cells
    assert cell.units == 2 * 5 + 3
    assert [(batch.measure, batch.batch_size) for batch in cell.batches] == [
        ("throughput", 1), ("throughput", 2), ("sustained", 4),
    ]  # fmt: skip
    assert cell.batches[-1].decode_s is None
    assert cell.perplexity_fits == "yes"
    text = printed(found)
    for words in ("batch 4, sustained", "perplexity", "measure mmlu: ", "it depends on the prompts: mmlu"):
        assert words in text


def test_memory_is_predicted_for_the_longest_needle_prompts(laptop: Environment) -> None:
    def fits(**tasks: object) -> forecast.CellForecast:
        measure = {"memory": {"seq_len": 8}, "tasks": {"names": ["niah_single_1"], **tasks}}
        return forecast.make(
            llama(model=REAL, backends=SIX[:1], measure=measure, device="cuda"), laptop, memory_bytes=24 * GIB
        ).cells[0]

    short, long = (fits(context_lengths=lengths, batch_size=1) for lengths in ([4096], [4096, 8192]))
    assert short.needles_bytes is not None
    assert long.needles_bytes is not None
    # 2 x 32 layers x 8 heads x 128 values of 2 bytes a token are 128 KiB.
    assert long.needles_bytes - short.needles_bytes > 4096 * 128 * 1024
    assert (short.needles_fits, fits(context_lengths=[8192], batch_size=8).needles_fits) == ("yes", "no")
    assert fits(names=["piqa"]).needles_bytes is None
    text = printed(
        forecast.make(
            llama(model=REAL, backends=SIX[:1], measure={"tasks": {"names": ["niah_single_1"]}}), laptop, rate=1e9
        )
    )
    assert "needle tasks" in text
    assert "it depends on the prompts" not in text


def test_a_plan_says_what_its_questions_will_show(laptop: Environment, tmp_path: Path) -> None:
    def rows(flips: float = 0.05, **measure: object) -> dict[str, tuple[object, ...]]:
        found = forecast.make(llama(model=REAL, measure=measure), laptop, rate=1e9)
        (told,) = json.loads(forecast_table.to_json([found], flips))
        by_task: dict[str, tuple[object, ...]] = {}
        for one in told["detectable"]:
            by_task.setdefault(one["task"], (one["questions"],))
            by_task[one["task"]] += (one["difference"],)
        table = forecast_table.power_table(found, flips)
        columns = [list(column.cells) for column in table.columns]
        assert columns[0] == list(by_task), "the same tasks in the table"
        for i, least in enumerate(one[1] for one in by_task.values()):
            assert columns[2][i] == ("–" if least is None else f"{100 * least:.2g}")
        return by_task

    # Five cells against 16 bit: (2.5758, the quantile at 1 - 0.05 / 10, + 0.8416) x sqrt(0.05 / n), and 1 / n.
    def by_hand(n: int, flips: float = 0.05) -> object:
        return pytest.approx((2.5758 + 0.8416) * (flips / n) ** 0.5 + 1 / n, rel=0.01)

    (tmp_path / "test.jsonl").write_text('{"question": 1}\n' * 4000)
    (tmp_path / "train.jsonl").write_text('{"question": 1}\n')
    (tmp_path / "two").mkdir()
    for split in ("test", "validation"):
        (tmp_path / "two" / f"{split}.csv").write_text("question\n1\n")
    names = ["hellaswag", "niah_single_1", "niah_multiquery", "mine", "two", "unheard_of"]
    tasks = {"names": names, "data": {"mine": str(tmp_path), "two": str(tmp_path / "two")}}
    found = rows(mmlu={}, tasks={**tasks, "context_lengths": [4096, 8192]})
    assert found == {
        "mmlu": (14_042, by_hand(14_042), by_hand(14_042, 0.15)),
        "hellaswag": (10_042, by_hand(10_042), by_hand(10_042, 0.15)),
        "niah_single_1@4096": (500, by_hand(500), by_hand(500, 0.15)),
        "niah_single_1@8192": (500, by_hand(500), by_hand(500, 0.15)),
        "mine": (4000, by_hand(4000), by_hand(4000, 0.15)),
        "two": (None, None, None),
        "unheard_of": (None, None, None),
    }
    # sqrt(2) times as much with twice as many flips.
    assert rows(flips=0.1, mmlu={})["mmlu"][1] == by_hand(14_042, 0.1)
    assert rows(tasks={"names": ["hellaswag"], "limit": 600})["hellaswag"][0] == 600
    assert rows(mmlu={"limit": 20})["mmlu"][0] == 1140
    assert rows(mmlu={"subjects": ["anatomy"]})["mmlu"] == (None, None, None), "not known before they are fetched"
    few = forecast.make(llama(model=REAL, measure={"mmlu": {"limit": 1, "subjects": ["anatomy"]}}), laptop, rate=1e9)
    assert list(forecast_table.power_table(few, 0.05).columns[2].cells) == ["100"], "one question shows nothing"
    text = printed(forecast.make(llama(model=REAL, measure={"mmlu": {}}), laptop, rate=1e9))
    assert "two-sided alpha 0.05, shared by 5 comparisons" in text
    alone = forecast.make(llama(model=REAL, backends=SIX[1:2], measure={"mmlu": {}}), laptop, rate=1e9)
    assert "smallest difference" not in printed(alone), "nothing is compared"


def test_the_questions_of_a_folder_are_counted(laptop: Environment) -> None:
    demo = {"backends": SIX[:2], "measure": {"mmlu": {"data": "demo"}, "tasks": {"names": ["demo_qa"]}}}
    assert forecast.make(run_config(**demo), laptop, rate=1e9).questions == {"mmlu": 2400, "demo_qa": 2400}
    demo["measure"] = {"mmlu": {"data": "demo", "limit": 7}}
    assert forecast.make(run_config(**demo), laptop, rate=1e9).questions == {"mmlu": 84}
    demo["measure"] = {"memory": {"seq_len": 8}}
    assert forecast.make(run_config(**demo), laptop, rate=1e9).questions == {}
