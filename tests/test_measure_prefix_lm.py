"""The prefix engine against lm-evaluation-harness's own wrapper, in float32, on many architectures."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from qbench import demo
from qbench.backends import fp16
from qbench.backends.fp16 import FP16
from qbench.config import MMLUConfig
from qbench.engine import prefix_groups
from qbench.engine.base import TokenCount
from qbench.engine.torch import engine
from qbench.engine.torch.engine import TorchEngine
from qbench.engine.torch.loaded import LoadedModel
from qbench.engine.torch.prefix import can_share
from qbench.errors import QbenchError
from qbench.measure.lm_eval import harness
from qbench.measure.lm_eval.adapter import EngineLM
from qbench.measure.lm_eval.mmlu_data import load_tasks, task_manager
from tests.support.data import MMLU, needs_mmlu
from tests.support.tiny_llama import options

MAX_LENGTH = 128
VOCABULARY = 400

Request = tuple[str, str]

EXAMPLES = "".join(f"Question {i} about word choices?\nAnswer: {'ABCD'[i % 4]}\n\n" for i in range(3))
ENDINGS = (" one", " two word choices", "", " multiple choice word", ". The end is near\n\nAnswer", " z")
REQUESTS: list[Request] = [
    # Letters after questions that share their examples.
    *((f"{EXAMPLES}Question {'word ' * i}?\nAnswer:", f" {letter}") for i in range(7) for letter in "ABCD"),
    # Endings of different length after one context, and after contexts that share their examples.
    *((f"{EXAMPLES}The choice {i}", f" {i}{ending}") for i in range(3) for ending in ENDINGS),
    # Tokens that reach over the boundary, spaces before it, contexts that are empty.
    ("Question about multiple ch", "oice answers"),
    ("Questi", "on word choices z"),
    ("The answer is  ", "A word"),
    ("The answer is  ", "B"),
    ("", " A"),
    ("", "multiple choice answers about"),
    # Longer than the model: nothing is shared any more where the cut falls differently.
    *(("long " + "word " * n + "Answer:", f" {letter}") for n in (130, 131, 260) for letter in "AB"),
    *(("long " + "word " * 140 + "Answer:", ending) for ending in (" one two three", " four word", " five")),
    # Twice the same.
    (f"{EXAMPLES}Question ?\nAnswer:", " A"),
    (f"{EXAMPLES}The choice 1", " 1 one"),
]


def make_tokenizer(bos: bool) -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    bpe.train_from_iterator(["Answer: A B C D", "Question", " word", "multiple choice", " answers about"] * 9, trainer)
    if bos:
        bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>")


PLAIN, WITH_BOS = make_tokenizer(False), make_tokenizer(True)

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": MAX_LENGTH}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": MAX_LENGTH}
ROTARY = SMALL | {"num_key_value_heads": 2, "intermediate_size": 64}

SHARING: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", ROTARY),
    "llama-eager": ("Llama", ROTARY | {"attn_implementation": "eager"}),
    "qwen2": ("Qwen2", ROTARY),
    "mistral": ("Mistral", ROTARY | {"sliding_window": None}),
    "phi": ("Phi", SMALL | {"intermediate_size": 64}),
    "gpt2": ("GPT2", GPT2),
    "opt": ("OPT", SMALL | {"ffn_dim": 64, "word_embed_proj_dim": 32}),
    "gpt_neox": ("GPTNeoX", SMALL | {"intermediate_size": 64}),
}
NOT_SHARING: dict[str, tuple[str, dict[str, Any]]] = {
    "sliding window": ("Mistral", ROTARY | {"sliding_window": 16}),
    "layers of two kinds": ("Gemma2", ROTARY | {"sliding_window": 16, "head_dim": 8}),
    "ALiBi": ("Bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "recurrent": ("Mamba", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}),
    "long RoPE": (
        "Llama",
        ROTARY
        | {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4,
                               "original_max_position_embeddings": 32}},
    ),
}  # fmt: skip


def make_model(name: str, settings: dict[str, Any]) -> PreTrainedModel:
    torch.manual_seed(0)
    special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    attention = (
        {"attn_implementation": settings.get("attn_implementation")} if "attn_implementation" in settings else {}
    )
    shape = {key: value for key, value in settings.items() if key != "attn_implementation"}
    config = getattr(transformers, f"{name}Config")(vocab_size=VOCABULARY, **special, **shape)
    model_type = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    model: PreTrainedModel = model_type._from_config(config, **attention).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.15)  # large, so that positions and masks matter
    return model


def load(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> LoadedModel:
    return LoadedModel(
        model=model, tokenizer=tokenizer, device=torch.device("cpu"), dtype=torch.float32, kernel="test",
        linear_bytes=1, linear_weights=1,
    )  # fmt: skip


def ask(lm: TemplateLM, requests: list[Request]) -> list[tuple[float, bool]]:
    instances = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(requests)]
    found: list[tuple[float, bool]] = lm.loglikelihood(instances, disable_tqdm=True)
    return found


def stock(loaded: LoadedModel, requests: list[Request], batch_size: int = 4) -> list[tuple[float, bool]]:
    tokenizer = copy.deepcopy(loaded.tokenizer)
    return ask(HFLM(pretrained=loaded.model, tokenizer=tokenizer, batch_size=batch_size), requests)


def check_equal(found: list[tuple[float, bool]], expected: list[tuple[float, bool]]) -> None:
    values, references = (torch.tensor([value for value, _ in some]) for some in (found, expected))
    torch.testing.assert_close(values, references, atol=1e-4, rtol=0)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


@pytest.fixture(scope="module")
def llama() -> LoadedModel:
    return load(make_model(*SHARING["llama"]), PLAIN)


@pytest.fixture(autouse=True)
def small_groups_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that few requests make groups inside groups."""
    monkeypatch.setattr(prefix_groups, "GROUP_TOKENS", 8)


def test_the_requests_reach_over_boundaries_and_lengths() -> None:
    encode = PLAIN.encode
    over = [pair for pair in REQUESTS if encode("".join(pair)) != encode(pair[0]) + encode(pair[1])]
    assert ("Question about multiple ch", "oice answers") in over
    assert max(len(encode("".join(pair))) for pair in REQUESTS) > MAX_LENGTH
    assert len({len(encode("".join(pair))) - len(encode(pair[0])) for pair in REQUESTS}) > 4


@pytest.mark.parametrize("tokenizer", [PLAIN, WITH_BOS], ids=["plain", "bos"])
@pytest.mark.parametrize("name", SHARING)
def test_log_likelihoods_are_those_of_lm_eval_where_prefixes_are_shared(
    name: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    loaded = load(make_model(*SHARING[name]), tokenizer)
    assert can_share(loaded.model)
    lm = EngineLM(TorchEngine(loaded), 4, share=True)
    check_equal(ask(lm, REQUESTS), stock(loaded, REQUESTS))
    assert lm.forward_tokens.read < 0.6 * lm.stock_tokens.read


@pytest.mark.parametrize("name", NOT_SHARING)
def test_log_likelihoods_are_those_of_lm_eval_where_nothing_can_be_shared(name: str) -> None:
    loaded = load(make_model(*NOT_SHARING[name]), PLAIN)
    assert not can_share(loaded.model)
    check_equal(ask(EngineLM(TorchEngine(loaded), 4, share=True), REQUESTS), stock(loaded, REQUESTS))
    lm = EngineLM(TorchEngine(loaded), 4, share=True)
    ask(lm, [pair for pair in REQUESTS if len(PLAIN.encode("".join(pair))) <= MAX_LENGTH])
    assert lm.forward_tokens == lm.stock_tokens


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 64])
def test_any_batch_size_gives_the_same(llama: LoadedModel, batch_size: int) -> None:
    check_equal(ask(EngineLM(TorchEngine(llama), batch_size, share=True), REQUESTS), stock(llama, REQUESTS))


def test_one_request_alone_is_answered(llama: LoadedModel) -> None:
    for request in REQUESTS[::9]:
        check_equal(ask(EngineLM(TorchEngine(llama), 8, share=True), [request]), stock(llama, [request]))


def test_the_order_of_requests_changes_nothing(llama: LoadedModel) -> None:
    order = random.Random(1).sample(range(len(REQUESTS)), len(REQUESTS))
    found = ask(EngineLM(TorchEngine(llama), 4, share=True), REQUESTS)
    again = ask(EngineLM(TorchEngine(llama), 4, share=True), [REQUESTS[i] for i in order])
    assert again == [found[i] for i in order]


def test_every_request_is_reported_once(llama: LoadedModel) -> None:
    class Hook:
        def __init__(self) -> None:
            self.seen: list[Request] = []

        def add_partial(self, _attribute: str, request: Request, _answer: tuple[float, bool]) -> None:
            self.seen.append(request)

    hook = Hook()
    lm = EngineLM(TorchEngine(llama), 4, share=True)
    lm.set_cache_hook(hook)
    ask(lm, REQUESTS)
    assert sorted(hook.seen) == sorted(REQUESTS)


def read_by(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    shapes: list[torch.Size] = []
    forward = model.forward

    def spy(input_ids: torch.Tensor, **settings: Any) -> Any:
        shapes.append(input_ids.shape)
        return forward(input_ids, **settings)

    monkeypatch.setattr(model, "forward", spy)
    return shapes


@pytest.mark.parametrize("share", [True, False])
def test_the_tokens_that_are_counted_are_those_the_model_reads(
    llama: LoadedModel, share: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "sharing_agrees", lambda *_: True)  # the check before is not counted
    shapes = read_by(llama.model, monkeypatch)
    lm = EngineLM(TorchEngine(llama), 4, share=share)
    ask(lm, REQUESTS)
    assert lm.forward_tokens.padded == sum(shape.numel() for shape in shapes)
    assert max(shape[0] for shape in shapes) == 4
    shapes.clear()
    stock(llama, REQUESTS)
    assert lm.stock_tokens.padded == sum(shape.numel() for shape in shapes)


def test_counts_of_a_subject_by_hand(llama: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "sharing_agrees", lambda *_: True)
    shapes = read_by(llama.model, monkeypatch)
    examples, questions = "x" * 40, ["1?", "22?", "3?"]
    lm = EngineLM(TorchEngine(llama), 2, share=True)
    ask(lm, [(examples + question, letter) for question in questions for letter in "ABCD"])
    assert [tuple(shape) for shape in shapes] == [(1, 40), (2, 3), (1, 2)]
    assert lm.forward_tokens == TokenCount(40 + 3 + 2 + 2, 40 + 2 * 3 + 2)
    assert lm.stock_tokens == TokenCount(42 + 43 + 42, 2 * 43 + 42)


def test_logits_are_computed_only_where_something_is_predicted(
    llama: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    widths: list[int] = []
    head = llama.model.get_output_embeddings()
    hook = head.register_forward_hook(lambda _module, _inputs, logits: widths.append(logits.shape[1]))
    ask(EngineLM(TorchEngine(llama), 8, share=True), [("word " * 20 + "?", letter) for letter in "ABCD"])
    hook.remove()
    assert widths == [1]


@pytest.mark.parametrize("continuation", ["", "word " * 300])
@pytest.mark.parametrize("share", [True, False])
def test_continuations_that_cannot_be_scored_are_refused(llama: LoadedModel, share: bool, continuation: str) -> None:
    with pytest.raises(QbenchError, match=f"{continuation[:20]}.* tokens after its prompt"):
        ask(EngineLM(TorchEngine(llama), 4, share=share), [("A prompt", continuation)])


def evaluate_subjects(loaded: LoadedModel, share: bool, config: MMLUConfig) -> tuple[harness.Evaluation, list[Any]]:
    tasks = load_tasks(config)
    found = harness.evaluate(
        TorchEngine(loaded), tasks, what="mmlu", share=share, batch_size=8, num_fewshot=5, limit=config.limit,
        manager=task_manager(), progress=lambda *_: None,
    )  # fmt: skip
    samples = found.results["samples"]
    return found, [sample["filtered_resps"] for name in sorted(samples) for sample in samples[name]]


@pytest.mark.parametrize(
    "config",
    [
        MMLUConfig(data="demo", subjects=("invented_birds", "invented_music", "invented_rulers"), limit=12),
        pytest.param(
            MMLUConfig(data=str(MMLU), subjects=("abstract_algebra", "high_school_us_history"), limit=6),
            marks=needs_mmlu,
        ),
    ],
    ids=["demo", "published"],
)
def test_mmlu_is_answered_as_by_lm_eval_from_fewer_tokens(config: MMLUConfig, tmp_path: Path) -> None:
    loaded = fp16.load(options(demo.MODEL_DIR, tmp_path, torch.float32), FP16(), None)
    (shared, answers), (whole, references) = (evaluate_subjects(loaded, e, config) for e in (True, False))
    check_equal([pair for four in answers for pair in four], [pair for four in references for pair in four])
    assert [max(range(4), key=lambda i: four[i][0]) for four in answers] == [
        max(range(4), key=lambda i: four[i][0]) for four in references
    ]
    assert whole.forward_tokens == whole.stock_tokens == shared.stock_tokens
    assert shared.forward_tokens.read < 0.4 * whole.forward_tokens.read


def test_whether_prefixes_may_be_shared_is_checked_on_the_longest_of_them() -> None:
    """GPT-Neo's local layers count places in the row: its answers are others where a row branches."""
    shape = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": MAX_LENGTH}
    local = {"attention_types": [[["global", "local"], 1]], "window_size": 8, "intermediate_size": 64}
    loaded = load(make_model("GPTNeo", shape | local), PLAIN)
    assert can_share(loaded.model), "nothing in its configuration says that it must not"
    lm = EngineLM(TorchEngine(loaded), 4, share=True)
    check_equal(ask(lm, REQUESTS), stock(loaded, REQUESTS))
    assert lm.shared is False
    wide = load(make_model("GPTNeo", shape | local | {"window_size": 256}), PLAIN)
    lm = EngineLM(TorchEngine(wide), 4, share=True)
    check_equal(ask(lm, REQUESTS), stock(wide, REQUESTS))
    assert lm.shared is True
