"""A transformers model behind the contract of `qbench.engine.base`."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch

from qbench.compat.transformers import takes_static_cache
from qbench.config.resolve import DecodeMode, decode_mode
from qbench.engine import prefix_groups
from qbench.engine.base import (
    IN_PROCESS,
    About,
    Capability,
    Decode,
    Generation,
    Ints,
    Journal,
    KVCache,
    Loglikelihoods,
    Pieces,
    Query,
    Scores,
    Stepper,
    Stop,
    Tokens,
)
from qbench.engine.text import context_of, decode, encode
from qbench.engine.torch.complete import complete
from qbench.engine.torch.decode import Decoder, generate, make_decoder
from qbench.engine.torch.loaded import LoadedModel
from qbench.engine.torch.logprobs import log_probabilities, outline
from qbench.engine.torch.memory import peak_bytes
from qbench.engine.torch.prefix import PrefixReader, can_share, sharing_agrees
from qbench.engine.torch.static import compiler_missing
from qbench.engine.torch.stepper import make_stepper
from qbench.errors import QbenchError
from qbench.model.find import CONTEXT_NAMES


class TorchEngine:
    """Runs what a torch backend has loaded; with a `kv_cache` of integers, over transformers' quantized cache."""

    def __init__(self, loaded: LoadedModel, kv_cache: KVCache = "16bit") -> None:
        self.loaded, self._kv_cache = loaded, kv_cache

    def _cache(self, asked: KVCache) -> KVCache:
        """The engine's own where it has one: nothing of a cell is measured over another."""
        return asked if self._kv_cache == "16bit" else self._kv_cache

    @cached_property
    def about(self) -> About:
        """What it holds."""
        loaded = self.loaded
        on_gpu = loaded.device.type == "cuda"
        tokenizer = loaded.tokenizer
        return About(
            kernel=loaded.kernel,
            dtype=str(loaded.dtype).removeprefix("torch."),
            device=torch.cuda.get_device_name(loaded.device) if on_gpu else loaded.device.type,
            weight_bytes=loaded.weight_bytes,
            effective_bits_per_weight=loaded.effective_bits_per_weight,
            vocab_size=loaded.model.config.get_text_config(decoder=True).vocab_size,
            quantized_layers=len(loaded.quantized),
            expected_layers=len(loaded.expected),
            lm_head_bits=loaded.lm_head_bits,
            quantize_s=loaded.quantize_s,
            context=_positions(loaded) or context_of(loaded.tokenizer),
            max_position_embeddings=_positions(loaded),
            bos_token_id=tokenizer.bos_token_id if tokenizer else None,
            eos_token_id=tokenizer.eos_token_id if tokenizer else None,
            gpu_uuid=_uuid(loaded.device) if on_gpu else None,
            gpu_uuids=tuple(map(_uuid, loaded.devices)) if on_gpu else (),
        )

    @property
    def can(self) -> frozenset[Capability]:
        """Everything; text only with a tokenizer, which random weights of a bare shape lack.

        Several tokens follow what is in the cache only in models whose keys and values would serve other prompts, too.
        Sequences that come and go keep theirs in 16 bit.
        """
        lacking = set() if self.loaded.tokenizer else {Capability.TEXT}
        lacking |= set() if self._kv_cache == "16bit" else {Capability.STREAM}
        return IN_PROCESS - lacking - (set() if can_share(self.loaded.model) else {Capability.DEPTH})

    def encode(self, text: str, *, special: bool | None = None) -> list[int]:
        """Token ids."""
        return encode(self.loaded.tokenizer, text, self._embeddings, special=special)

    @cached_property
    def _embeddings(self) -> int:
        rows: int = self.loaded.model.get_input_embeddings().weight.shape[0]
        return rows

    def decode(self, ids: Sequence[int], *, special: bool = True) -> str:
        """The text of token ids."""
        return decode(self.loaded.tokenizer, ids, special=special)

    def decode_mode(self, asked: Decode, kv_cache: KVCache = "16bit") -> DecodeMode:
        """`eager`, `graph` or `compiled`.

        Raises:
            QbenchError: a CUDA graph asked for without CUDA; a graph or compiled step of a model without a step of
                fixed shapes; a compiled one where there is no compiler.
        """
        device = self.loaded.device.type
        if obstacle := self._no_fixed_step:
            if asked in ("graph", "compiled"):
                raise QbenchError(f"decode: {asked} needs {obstacle}; use auto")
            return "eager"
        if asked == "compiled" and (missing := compiler_missing(device)):
            raise QbenchError(f"decode: compiled needs {missing}, or use auto")
        several = len(self.loaded.devices) > 1
        return decode_mode(asked, device, device_map_auto=several, kv_cache=self._cache(kv_cache))

    @property
    def _no_fixed_step(self) -> str | None:
        """What a step of fixed shapes needs and this model lacks."""
        if not takes_static_cache(self.loaded.model):
            return f"a cache of one length, which {type(self.loaded.model).__name__} does not take"
        if self.loaded.device.type == "cuda" and not self.loaded.capturable:
            return f"kernels that can be captured, and {self.loaded.kernel} waits for the GPU or leaves its stream"
        return None

    def session(
        self, batch_size: int, seq_len: int, *, decode: Decode = "auto", kv_cache: KVCache = "16bit"
    ) -> TorchSession:
        """A decoder with its cache, which is allocated at the first prefill; a compiled one is compiled here."""
        mode = self.decode_mode(decode, kv_cache)
        decoder = make_decoder(self.loaded.model, mode, batch_size, seq_len, self._cache(kv_cache))
        return TorchSession(decoder, self.loaded.device)

    def complete(self, prompts: Sequence[Tokens], new_tokens: int, stop: Stop) -> list[Tokens]:
        """See `qbench.engine.torch.complete`."""
        return complete(self.loaded, prompts, new_tokens, stop, self._kv_cache)

    def stepper(self, sequences: int, context: int) -> Stepper:
        """See `qbench.engine.torch.stepper`."""
        return make_stepper(self.loaded, sequences, context)

    def loglikelihoods(
        self, queries: Iterable[Query], *, batch_size: int, share: bool, journal: Journal | None = None
    ) -> Loglikelihoods:
        """See `qbench.engine.torch.prefix`; models that cannot share, and quantized caches, read every prompt whole."""
        asked = list(queries)
        share = share and can_share(self.loaded.model) and self._kv_cache == "16bit"
        groups = prefix_groups.plan(asked, batch_size=batch_size, share=share)
        if share and not (
            prefix_groups.begun(groups, batch_size, journal) or sharing_agrees(self.loaded, groups, batch_size)
        ):
            share, groups = False, prefix_groups.plan(asked, batch_size=batch_size, share=False)
        reader = PrefixReader(self.loaded, batch_size, journal, self._kv_cache)
        return Loglikelihoods(prefix_groups.count(groups, batch_size), reader.read(groups), shared=share)

    @torch.inference_mode()
    def score(
        self, tokens: Ints, *, top_k: int | None = None, words: Ints | None = None, whole: Pieces | None = None
    ) -> Scores:
        """See `qbench.engine.base.Engine.score`."""
        window = torch.from_numpy(tokens)
        targets = window[1:].to(self.loaded.device)
        watched = None if words is None else torch.from_numpy(words).to(self.loaded.device)
        found: dict[str, list[torch.Tensor]] = {}
        for rows, logprobs in log_probabilities(self.loaded, window, self._kv_cache):
            if whole:
                whole(rows, logprobs.cpu().numpy())
            seen = {"truth": logprobs.gather(1, targets[rows, None])[:, 0]}
            chosen = None if watched is None else watched[rows]
            if top_k:
                chosen = logprobs.topk(min(top_k, logprobs.shape[1])).indices
            if chosen is not None:
                seen |= {"best": logprobs.amax(1), "words": chosen, "outlines": outline(logprobs, chosen)}
            for name, values in seen.items():
                found.setdefault(name, []).append(values.cpu())
        return Scores(**{name: torch.cat(pieces).numpy() for name, pieces in found.items()})

    def peak_memory(self, call: Callable[[], object]) -> list[int]:
        """See `qbench.engine.torch.memory`."""
        return peak_bytes(self.loaded, call)


class TorchSession:
    """A decoder that takes and gives NumPy arrays."""

    def __init__(self, decoder: Decoder, device: torch.device) -> None:
        self._decoder: Decoder | None = decoder
        self._device = device
        self._compile_s: float | None = getattr(decoder, "compile_s", None)

    def generate(self, prompts: Ints, new_tokens: int, *, after: Ints | None = None) -> Generation:
        """See `qbench.engine.torch.decode.generate`; the prompts are on the device before its clock begins."""
        assert self._decoder is not None, "the session is closed"
        on_device, before = self._on_device(prompts), None if after is None else self._on_device(after)
        return replace(generate(self._decoder, on_device, new_tokens, before), compile_s=self._compile_s)

    def _on_device(self, tokens: Ints) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(tokens)).to(self._device)

    def close(self) -> None:
        """Give the cache back, so that it is neither counted nor in the way of the next one."""
        self._decoder = None
        if self._compile_s is not None:
            torch.compiler.reset()  # compiled code holds the cache that it was compiled for
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def _uuid(gpu: torch.device) -> str:
    return f"GPU-{torch.cuda.get_device_properties(gpu).uuid}"


def _positions(loaded: LoadedModel) -> int | None:
    config = loaded.model.config
    for part in (config.get_text_config(decoder=True), config):
        for name in CONTEXT_NAMES:
            if length := getattr(part, name, None):
                return int(length)
    return None
