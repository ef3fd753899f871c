"""The contract between measures and whatever runs a model.

NumPy arrays and Python numbers cross it, never a library's own tensors. Token ids are int64, log-probabilities natural
logarithms in float32, times seconds, sizes bytes. An engine owns its clock and says what it cannot do (`can`); no call
changes the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

Ints = np.ndarray[Any, np.dtype[np.int64]]
Floats = np.ndarray[Any, np.dtype[np.float32]]
Tokens = tuple[int, ...]
KVCache = Literal["16bit", "int8", "int4"]
Decode = Literal["auto", "eager", "graph", "compiled"]

Answer = tuple[float, bool]
"""Log-probability of all tokens of an answer, and whether each of them is the most probable."""


class Capability(StrEnum):
    """What a measure may need of an engine."""

    TEXT = "text"
    """It has a tokenizer: `encode` and `decode`."""
    GENERATE = "generate"
    """`session` and `complete`."""
    DEPTH = "depth"
    """Sessions that generate `after` tokens which are in the cache already."""
    KV_CACHE = "kv_cache"
    """Sessions whose keys and values are quantized."""
    LOGLIKELIHOODS = "loglikelihoods"
    SCORE = "score"
    PEAK_MEMORY = "peak_memory"
    STREAM = "stream"
    """`stepper`, see `Streaming`."""
    REQUESTS = "requests"
    """It answers requests over HTTP, which come and go by themselves: `endpoint`."""


IN_PROCESS = frozenset(Capability) - {Capability.REQUESTS}
"""What an engine can do at most that computes in the process that asks it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What an engine holds; the columns of its cell's row. None where it cannot know: of a server's weights."""

    kernel: str
    """What multiplies the quantized weights."""
    dtype: str | None
    """Of activations, as NumPy and torch name it."""
    device: str | None
    """`cpu`, or the GPU's name; None on another machine."""
    weight_bytes: int | None
    """Of all weights and buffers."""
    effective_bits_per_weight: float | None
    """Bytes that hold the linears of attention and MLP × 8 ÷ their weights."""
    vocab_size: int
    quantized_layers: int | None = 0
    expected_layers: int | None = 0
    lm_head_bits: int | None = 16
    quantize_s: float | None = None
    """Seconds spent quantizing while loading; None if nothing was quantized."""
    max_position_embeddings: int | None = None
    """The positions that the model was made for, by its configuration; None where that sets no limit."""
    context: int | None = None
    """The most tokens that the model, or else its tokenizer, takes; None where neither says."""
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    gpu_uuid: str | None = None
    """Of the first GPU that holds weights, as its driver reports it; None on a CPU."""
    gpu_uuids: tuple[str, ...] = ()
    """Of all GPUs that hold weights."""


@dataclass(frozen=True, slots=True)
class Generation:
    """Raw samples of one generation."""

    tokens: Ints
    """[batch_size, new_tokens]; -1 behind the end of those that only a text tells of, see `texts`."""
    ttft_s: float
    """From the call until the first token of every sequence is there."""
    step_s: tuple[float, ...]
    """Time between tokens: one for every token but the first. Their sum is the time of decoding."""
    compile_s: float | None = None
    """Seconds that the session took to compile its step, before any generation; None where it compiled nothing."""
    itl_s: tuple[float, ...] | None = None
    """Times between the tokens of each sequence, where sequences do not step together; None where they do."""
    texts: tuple[str, ...] | None = None
    """What a server wrote of each sequence, where it does not say in which tokens."""


Stop = Callable[[Sequence[int]], bool]
"""Whether a continuation ends with the last of these tokens, which are all that it has so far."""


class Session(Protocol):
    """Memory for sequences of a fixed number and length: a cache, a graph, or a server's slots."""

    def generate(self, prompts: Ints, new_tokens: int, *, after: Ints | None = None) -> Generation:
        """Greedily generate `new_tokens` tokens after prompts [batch_size, prompt_tokens]; nothing ends them early.

        `after` [batch_size, depth] is read into the cache before the clock starts, and the prompts follow it.

        Raises:
            NotFiniteError: logits were NaN or infinite; looked at when the clock has stopped.
        """

    def close(self) -> None:
        """Give the memory back."""


class Stepper(Protocol):
    """Sequences that come and go, of which each step computes one token: continuous batching (Orca, OSDI 2022)."""

    def join(self, prompt: Tokens) -> tuple[int, Floats]:
        """Read a prompt of at least one token: the number of its sequence, and the logits [vocab_size] that follow.

        There is room for as many sequences as the stepper was made for.
        """

    def step(self, tokens: Mapping[int, int]) -> Floats:
        """Append a token to each of the sequences named: logits [len(tokens), vocab_size] in their order.

        Other sequences wait. What a sequence is given does not depend on the others but for the order of sums.
        """

    def leave(self, sequence: int) -> None:
        """Forget a sequence; its number may be given to the next."""

    def close(self) -> None:
        """Give the memory back."""


@dataclass(frozen=True, slots=True)
class Query:
    """One log-likelihood: that `answer` follows `stem`. A model reads the stem and all of the answer but its end."""

    stem: Tokens
    answer: Tokens


@dataclass(frozen=True, slots=True)
class TokenCount:
    """Tokens that go through a model, without and with padding."""

    read: int = 0
    padded: int = 0

    def __add__(self, other: TokenCount) -> TokenCount:
        return TokenCount(self.read + other.read, self.padded + other.padded)


@dataclass(frozen=True, slots=True)
class Loglikelihoods:
    """Answers to queries, computed as they are taken."""

    tokens: TokenCount
    """What the model reads for all of them."""
    batches: Iterator[dict[Query, Answer]]
    """Every query once, in the order in which they are computed."""
    shared: bool = False
    """Whether what prompts have in common is read once."""


class Journal(Protocol):
    """Keeps answered batches, so that an evaluation goes on where its process ended: answers, or tokens generated."""

    def get(self, batch: str) -> list[Any] | None:
        """The answers of a batch, as they were put, by a name that stands for its tokens."""

    def put(self, batch: str, answers: Sequence[tuple[Any, ...]]) -> None:
        """Keep the answers of a batch."""


@dataclass(frozen=True, slots=True)
class Scores:
    """What a model says of the n - 1 tokens that follow the first of a window.

    An outline of a prediction is the log-probabilities of k words and, last, of all others together.
    """

    truth: Floats
    """[n - 1], of the tokens that really follow."""
    best: Floats | None = None
    """[n - 1], of the most probable token."""
    words: Ints | None = None
    """[n - 1, k], those of the outlines."""
    outlines: Floats | None = None
    """[n - 1, k + 1]."""


Pieces = Callable[[slice, Floats], None]
"""Takes log-probabilities of the whole vocabulary, [rows, vocabulary], of some rows of a window at a time, in order."""


class Engine(Protocol):
    """A loaded model."""

    @property
    def about(self) -> About:
        """What it holds."""

    @property
    def can(self) -> frozenset[Capability]:
        """What it can do; calling anything else raises NotImplementedError."""

    def encode(self, text: str, *, special: bool | None = None) -> list[int]:
        """Token ids. `special`: with or without the tokenizer's special tokens; its own default if None."""

    def decode(self, ids: Sequence[int], *, special: bool = True) -> str:
        """The text of token ids; `special`: with special tokens."""

    def decode_mode(self, asked: Decode, kv_cache: KVCache = "16bit") -> str:
        """The decode mode of a session that is asked for in these words, as rows name it: eager, graph, compiled, ….

        Raises:
            QbenchError: the engine has no such mode here.
        """

    def session(
        self, batch_size: int, seq_len: int, *, decode: Decode = "auto", kv_cache: KVCache = "16bit"
    ) -> Session:
        """Memory for `batch_size` sequences of at most `seq_len` tokens.

        Raises:
            QbenchError: the model's cache cannot be quantized as asked, or its step not be compiled.
        """

    def complete(self, prompts: Sequence[Tokens], new_tokens: int, stop: Stop) -> list[Tokens]:
        """Greedily continue prompts of any lengths side by side, each as if it were alone, but for the order of sums.

        A continuation has at most `new_tokens` tokens. Its last one is the model's own end of text, or the one after
        which `stop` says so.

        Raises:
            NotFiniteError: logits were NaN or infinite.
        """

    def loglikelihoods(
        self, queries: Iterable[Query], *, batch_size: int, share: bool, journal: Journal | None = None
    ) -> Loglikelihoods:
        """Answer distinct queries in batches of at most `batch_size` sequences.

        `share`: prompts that begin alike may be read once, with the same log-likelihoods but for the order of sums. An
        engine checks that on the first of them, and reads prompts whole where it does not hold.
        """

    def score(
        self, tokens: Ints, *, top_k: int | None = None, words: Ints | None = None, whole: Pieces | None = None
    ) -> Scores:
        """Score a window [n] in one forward.

        Outlines are of the `top_k` most probable words, or of `words` [n - 1, k], or are left out. `whole` is given the
        log-probabilities of all words.
        """

    def peak_memory(self, call: Callable[[], object]) -> list[int]:
        """Bytes on each device at the worst moment of `call` there, weights included."""


@runtime_checkable
class Streaming(Protocol):
    """What engines with `Capability.STREAM` do besides."""

    def stepper(self, sequences: int, context: int) -> Stepper:
        """Memory for at most so many `sequences` at once, of at most `context` tokens each."""
