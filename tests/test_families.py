"""Every family against stock transformers and lm-evaluation-harness: what works is right, what does not says why."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.huggingface import HFLM
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from qbench.backends import fp16, int4, nf4
from qbench.backends.fp16 import FP16
from qbench.backends.int4.fuse import JoinedLinear
from qbench.backends.int4.options import Int4
from qbench.backends.nf4 import NF4
from qbench.compat.transformers import takes_static_cache
from qbench.engine import prefix_groups
from qbench.engine.torch.decode import generate, make_decoder
from qbench.engine.torch.eager import EagerDecoder
from qbench.engine.torch.engine import TorchEngine
from qbench.engine.torch.loaded import LoadedModel
from qbench.engine.torch.static import GraphDecoder
from qbench.errors import QbenchError
from qbench.int4 import QuantLinear, native
from qbench.measure.lm_eval.adapter import EngineLM
from tests.support.families import FAMILIES, SHAPE, save
from tests.support.flash_attention import flash_attention_on_the_cpu
from tests.support.operators import CallsMade, ShapesMade
from tests.support.tiny_llama import options

DOCS = Path(__file__).parents[1] / "docs" / "models.md"
PROMPT = torch.randint(1, 4096, (2, 24), generator=torch.Generator().manual_seed(1))
NEW_TOKENS = 20

EXAMPLES = "The river rises in the mountains. It ends in the lake. " * 3
REQUESTS = [
    *((f"{EXAMPLES}{'again ' * i}The answer is", f" {letter}") for i in range(4) for letter in "ABCD"),
    *((f"{EXAMPLES}Birds {i}", ending) for i in range(2) for ending in (" sing", " sing in the morning", " fly")),
    ("", " alone"),
]

BACKENDS = {"fp16": (fp16, FP16(label="fp16")), "int4": (int4, Int4(label="int4")), "nf4": (nf4, NF4(label="nf4"))}


IN_SHORT = {
    "Llama", "Mistral, sliding window", "Qwen3", "Gemma 3", "Phi-3", "Falcon", "Falcon, ALiBi", "GPT-2", "GPT-NeoX",
    "OPT", "Mixtral", "gpt-oss", "DeepSeek-V3", "Mamba-2", "Falcon-H1", "RWKV",
}  # fmt: skip
"""One family of each build, for `make test`; the others are like one of them and follow in the long tests."""


class Family:
    """A family's model, loaded once for all that is tried with it."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = save(name, folder)
        self._refusals: dict[str, str] = {}

    @cached_property
    def loaded(self) -> LoadedModel:
        """The 16-bit cell's."""
        loaded = self.load("fp16")
        assert isinstance(loaded, LoadedModel), loaded
        return loaded

    @cached_property
    def stock(self) -> PreTrainedModel:
        return AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32)

    @cached_property
    def stock_tokens(self) -> torch.Tensor:
        """What `generate` continues the prompt with."""
        return self.stock.generate(
            PROMPT, attention_mask=torch.ones_like(PROMPT), max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS,
            do_sample=False, eos_token_id=None, pad_token_id=0,
        )[:, PROMPT.shape[1] :]  # fmt: skip

    def load(self, backend: str) -> LoadedModel | str:
        """A backend's model, or the sentence with which it is refused."""
        module, config = BACKENDS[backend]
        try:
            loaded = module.load(options(self.folder, self.folder, torch.float32), config, None)
            loaded.check()
        except QbenchError as error:
            self._refusals[backend] = str(error)
            return str(error)
        self._refusals[backend] = ""
        return loaded

    def row(self) -> str:
        """Its row in the table of docs/models.md."""
        kind, _ = FAMILIES[self.name]
        return f"| {' | '.join([self.name, f'`{kind}`', *map(self._outcome, BACKENDS)])} |"

    def _outcome(self, backend: str) -> str:
        if backend not in self._refusals:
            self.load(backend)
        refusal = self._refusals[backend]
        if not refusal:
            return "yes"
        (short,) = {short for words, short in REASONS.items() if words in refusal}
        return short


REASONS = {
    "is a part of": "no: experts",
    "blocks are not quantized": "no: experts",
    "linears are not quantized": "no: linears of its own",
    "has no nn.Linear": "no: Conv1D",
    "reads the weights of its linears": "no: reads weights itself",
    "cannot multiply by the linears": "by sizes",
}
"""By words of a refusal, what the table says."""


@pytest.fixture(scope="module")
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    return Family(request.param, tmp_path_factory.mktemp("family"))


def of(names: Iterable[str]) -> pytest.MarkDecorator:
    """One family after the other: pytest runs all tests of one before those of the next."""
    params = [name if name in IN_SHORT else pytest.param(name, marks=pytest.mark.long) for name in names]
    return pytest.mark.parametrize("family", params, indirect=True, scope="module")


@pytest.fixture(autouse=True)
def small_groups_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_groups, "GROUP_TOKENS", 8)


def answers(lm: TemplateLM) -> torch.Tensor:
    instances = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(REQUESTS)]
    return torch.tensor([value for value, _ in lm.loglikelihood(instances, disable_tqdm=True)])


@of(FAMILIES)
def test_the_16_bit_cell_is_stock(family: Family) -> None:
    """Tokens of the generation loop are those of `generate`, log-likelihoods those of lm-evaluation-harness."""
    loaded = family.loaded
    assert TorchEngine(loaded).decode_mode("auto") == "eager"
    for _ in range(2):  # the second time over the state of the first
        decoder = make_decoder(loaded.model, "eager", len(PROMPT), PROMPT.shape[1] + NEW_TOKENS)
        assert torch.equal(torch.from_numpy(generate(decoder, PROMPT, NEW_TOKENS).tokens), family.stock_tokens)
    before = {key: tensor.clone() for key, tensor in loaded.model.state_dict().items()}
    found = answers(EngineLM(TorchEngine(loaded), 4, share=True))
    expected = answers(HFLM(pretrained=family.stock, tokenizer=copy.deepcopy(loaded.tokenizer), batch_size=4))
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=1e-4)
    assert all(torch.equal(tensor, before[key]) for key, tensor in loaded.model.state_dict().items())


def groups(name: str) -> int:
    """Heads of queries that share a head of keys; 1 where there are no heads."""
    kind, settings = FAMILIES[name]
    config = AutoConfig.for_model(kind, **{**SHAPE, **settings})
    heads = getattr(config, "num_attention_heads", 1)
    kv_heads = getattr(config, "num_kv_heads", None) or getattr(config, "num_key_value_heads", None)
    return int(heads // (kv_heads or heads))


NOT_TORCHS = {"Gemma 2": "soft caps", "gpt-oss": "sinks"}
"""Families whose attention is not torch's, and what torch's does not have."""
RECURRENT = {"Mamba", "Mamba-2", "FalconMamba", "RWKV", "MiniMax"}
GROUPED = [name for name in FAMILIES if groups(name) > 1 and name not in {*NOT_TORCHS, *RECURRENT}]


@of(GROUPED)
def test_an_eager_step_of_grouped_queries_copies_no_keys(family: Family) -> None:
    """Logits are those of a forward over all tokens; nothing is made of keys or values for every head of queries."""
    loaded = family.loaded
    decoder = EagerDecoder(loaded.model, PROMPT.shape[1] + NEW_TOKENS)
    with torch.inference_mode():
        token = decoder.prefill(PROMPT)
        best = loaded.model(torch.cat([PROMPT, token], dim=1)).logits[:, -1].max(-1, keepdim=True)
        with ShapesMade() as made:
            following = decoder.step(token)
    assert torch.equal(following, best.indices)
    torch.testing.assert_close(decoder.best, best.values, rtol=1e-4, atol=1e-4)
    layers = [layer.keys.shape for layer in decoder._cache.layers if getattr(layer, "keys", None) is not None]
    assert layers
    heads = loaded.model.config.num_attention_heads
    for batch, kv_heads, kept, width in layers:
        shared = heads // kv_heads
        if shared == 1:  # a family that leaves `num_key_value_heads` unread
            continue
        assert (batch, kv_heads, shared, width) in made.shapes  # the queries, as rows
        for length in (kept, kept + 1):  # a sliding window keeps one less than it attends to
            assert (batch, heads, length, width) not in made.shapes
            assert (batch, kv_heads, shared, length, width) not in made.shapes


@torch.inference_mode()
def calls_of_a_step(decoder: GraphDecoder) -> list[str]:
    """Those of the next step of a decoder that has generated."""
    with CallsMade() as made:
        decoder.step(PROMPT[:, :1])
    return made.calls


NOT_CAPTURED = {
    "GPT-Neo", "MPT", "OPT", "Mamba", "Mamba-2", "FalconMamba", "RWKV", "MiniMax", "Kimi Linear", "Ling 2.5", "Jamba",
    "Bamba", "Falcon-H1", "Falcon, ALiBi",
}  # fmt: skip


@of(FAMILIES)
def test_the_step_that_a_graph_captures_is_stock(family: Family) -> None:
    """Its arithmetic over a cache of one length, run as it is, gives stock tokens, and is the same in every step.

    Families whose class does not take such a cache stay eager.
    """
    loaded = family.loaded
    assert takes_static_cache(loaded.model) == (family.name not in NOT_CAPTURED)
    decoder = GraphDecoder(loaded.model, len(PROMPT), PROMPT.shape[1] + NEW_TOKENS + 1)
    if family.name in NOT_CAPTURED:
        with pytest.raises(QbenchError, match="decode: graph needs a cache of one length"):
            TorchEngine(loaded).decode_mode("graph")
    else:
        tokens = torch.from_numpy(generate(decoder, PROMPT, NEW_TOKENS).tokens)
        assert torch.equal(tokens, family.stock_tokens)
        assert calls_of_a_step(decoder) == calls_of_a_step(decoder)


NOT_FILLED = {
    "Mistral, sliding window", "Gemma 2", "Gemma 3", "Cohere 2",  # windows in every layer, or soft caps
    "Falcon", "gpt-oss", "DeepSeek-V3",  # attention of their own, or in keys and values of two widths
    "GPT-2", "GPT-NeoX", "GPT-J", "Bloom",  # a head of keys for each of queries
}  # fmt: skip
ONE_OF_THREE = {"Qwen2, sliding window", "EXAONE 4", "LFM2"}
"""Families of which one layer attends to everything."""


@of(name for name in FAMILIES if name not in NOT_CAPTURED)
def test_a_step_over_the_filled_part_of_a_cache_is_stock(family: Family) -> None:
    """By FlashAttention, where a layer's mask says nothing but how much of the cache is filled."""
    decoder = GraphDecoder(family.loaded.model, len(PROMPT), PROMPT.shape[1] + NEW_TOKENS + 1)
    with flash_attention_on_the_cpu() as calls:
        tokens = torch.from_numpy(generate(decoder, PROMPT, NEW_TOKENS).tokens)
        assert torch.equal(tokens, family.stock_tokens)
        calls.clear()
        with torch.inference_mode():
            decoder.step(PROMPT[:, :1])
    layers = family.loaded.model.config.num_hidden_layers
    assert len(calls) == (0 if family.name in NOT_FILLED else 1 if family.name in ONE_OF_THREE else layers)


@of(FAMILIES)
def test_int4_is_the_model_with_the_dequantized_weights(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32 arithmetic: the rounding of activations to integers would decide a router's ties otherwise."""
    monkeypatch.setattr(native, "level", lambda: native.LEVELS.index("generic"))
    loaded = family.load("int4")
    if isinstance(loaded, str):
        assert_says_what_to_do(loaded)
        return
    stock = AutoModelForCausalLM.from_pretrained(family.folder, dtype=torch.float32)
    with torch.no_grad():
        for weight_name, weight in dequantized(loaded).items():
            place(stock, weight_name).copy_(weight)
        found, expected = loaded.model(PROMPT).logits, stock(PROMPT).logits
    torch.testing.assert_close(found, expected, atol=1e-3 * float(expected.std()), rtol=0)


@of(["Mixtral", "Granite-MoE"])
def test_experts_go_through_a_checkpoint_bit_for_bit(family: Family, tmp_path: Path) -> None:
    """Mixtral's files hold each expert by itself, Granite's all of a layer together."""
    streamed = family.load("int4")
    assert isinstance(streamed, LoadedModel)
    how = options(family.folder, family.folder, torch.float32)
    int4.quantize(how, Int4(label="int4"), None, tmp_path / "made")
    loaded = int4.load(how, Int4(label="int4", checkpoint=tmp_path / "made"), None)
    assert loaded.quantized == streamed.quantized
    # Three layers: query, key, value and output, and four experts with a gate, an up and a down projection.
    assert len(loaded.quantized) == 3 * (4 + 4 * 3)
    assert torch.equal(loaded.model(PROMPT).logits, streamed.model(PROMPT).logits)


@of(FAMILIES)
def test_nf4_works_or_says_why_not(family: Family) -> None:
    loaded = family.load("nf4")
    if isinstance(loaded, str):
        assert_says_what_to_do(loaded)
        return
    decoder = make_decoder(loaded.model, "eager", len(PROMPT), PROMPT.shape[1] + 3)
    assert generate(decoder, PROMPT, 3).tokens.shape == (2, 3)


HEAD = ["| family | `model_type` | fp16 | int4 | nf4 |", "| --- | --- | --- | --- | --- |"]


def documented() -> list[str]:
    """The table's lines."""
    return [line for line in DOCS.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]


@of(FAMILIES)
def test_the_documented_row_is_what_is_found_here(family: Family) -> None:
    """`python -m tests.test_families` writes them anew. Sizes that bitsandbytes takes differ from CPU to CPU."""
    found = family.row()
    (line,) = [line for line in documented() if line.startswith(f"| {family.name} | ")]
    assert line.split("|")[:5] == found.split("|")[:5]
    assert line == found or "by sizes" in line + found


def test_every_family_has_a_documented_row() -> None:
    lines = documented()
    assert lines[:2] == HEAD
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines[2:]] == list(FAMILIES)


def assert_says_what_to_do(refusal: str) -> None:
    """A remedy, in words that name something."""
    assert re.search(r"use |choose |give |set |leave |remove ", refusal), refusal
    assert len(refusal) > 40


def place(model: PreTrainedModel, name: str) -> torch.Tensor:
    """Where a weight is in the 16-bit model, which stacks its experts: gate before up."""
    expert = re.fullmatch(r"(.+\.experts)\.(\d+)\.(\w+)_proj\.weight", name)
    if not expert:
        return model.get_parameter(name)
    module, number, leaf = model.get_submodule(expert[1]), int(expert[2]), expert[3]
    if leaf == "down":
        return module.down_proj[number]  # type: ignore[union-attr, index, return-value]
    halves: tuple[torch.Tensor, ...] = module.gate_up_proj[number].chunk(2)  # type: ignore[union-attr, index]
    return halves[leaf == "up"]


def dequantized(loaded: LoadedModel) -> dict[str, torch.Tensor]:
    """Quantized weights by the names that they have in the 16-bit model."""
    found = {}
    for name, module in loaded.model.named_modules():
        if isinstance(module, JoinedLinear):
            joined = module._joined
            found[f"{name}.weight"] = joined.linear.weight().split(joined._sizes)[module._index]
        elif isinstance(module, QuantLinear) and not name.endswith("weight_of_all"):
            found[f"{name}.weight"] = module.weight()
    return found


if __name__ == "__main__":
    import tempfile

    text = DOCS.read_text(encoding="utf-8")
    start, end = text.index(HEAD[0]), text.rindex(" |\n") + 3
    with tempfile.TemporaryDirectory() as work:
        lines = [*HEAD, *(Family(name, Path(work) / name).row() for name in FAMILIES)]
        DOCS.write_text(text[:start] + "\n".join(lines) + text[end - 1 :], encoding="utf-8")
