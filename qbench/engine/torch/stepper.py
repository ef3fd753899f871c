"""Sequences that come and go, with a token for each of them in every step.

Where keys and values are all that a model keeps of a sequence, the sequences are rows of one buffer a layer, filled
from the left. A step writes every row's token at that row's own end, and a mask hides what stands behind it. A prompt
is read alone, and its keys and values are put into a row. Rows in use stay together at the front: the last one moves
into the place of one that leaves, and so a step reads no row that nobody waits for.

Of other models (recurrent states, sliding windows, ALiBi), every sequence keeps a state of its own, and a step reads
one after the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from qbench.compat.transformers import Cache, DynamicLayer
from qbench.engine.base import Floats, Stepper, Tokens
from qbench.engine.torch.attention import without_copies
from qbench.engine.torch.loaded import LoadedModel
from qbench.engine.torch.prefix import TOLERANCE_16BIT, TOLERANCES, can_share
from qbench.engine.torch.step import empty_state, keeping, state_name, takes_positions

FIRST_CAPACITY = 256
"""Tokens a row has room for to begin with; the room doubles when a sequence needs more."""

PROBE = 320
"""Tokens of the longer sequence that `make_stepper` tries: more than the windows of models that hide theirs."""


def make_stepper(loaded: LoadedModel, sequences: int, context: int) -> Stepper:
    """Rows of one batch where the model gives the same in them as alone, which is tried; else one after the other."""
    alone = SerialStepper(loaded.model)
    if not can_share(loaded.model):
        return alone
    rows = RowStepper(loaded.model, sequences, context)
    return rows if sequences > 1 and _agrees(rows, alone, loaded, context) else alone


def _agrees(rows: Stepper, alone: Stepper, loaded: LoadedModel, context: int) -> bool:
    """Whether a long and a short sequence are continued side by side as they are alone."""
    vocabulary = loaded.model.config.get_text_config(decoder=True).vocab_size
    drawn = np.random.default_rng(0).integers(vocabulary, size=PROBE).tolist()
    found = []
    for stepper in (rows, alone):
        joined = [stepper.join(tuple(drawn[: min(length, context - 1)]))[0] for length in (PROBE, 3)]
        logits = torch.from_numpy(stepper.step(dict.fromkeys(joined, drawn[0])))
        found.append(logits.log_softmax(-1))
        for sequence in joined:
            stepper.leave(sequence)
    likely = found[1].topk(min(10, vocabulary)).indices
    difference = (found[0].gather(1, likely) - found[1].gather(1, likely)).abs().max().item()
    return difference <= TOLERANCES.get(loaded.dtype, TOLERANCE_16BIT)


class Rows:
    """Which rows of the buffers are in use, and how long their sequences are."""

    def __init__(self) -> None:
        self.writing: Tensor
        """[n], the rows that a step appends to."""
        self.ends: Tensor
        """[n], the tokens that they hold before it."""
        self.used = 0
        """Rows of a step's batch: those in use, which are the first."""
        self.longest = 0
        """Tokens of the longest of them, with the step's."""


class RowLayer(DynamicLayer):  # type: ignore[misc]  # transformers has no types
    """A layer of the cache: keys and values [rows, kv_heads, capacity, head_dim], zero where nothing was written."""

    def __init__(self, rows: Rows, prompt: DynamicLayer, sequences: int) -> None:
        super().__init__()
        self._rows = rows
        self.lazy_initialization(prompt.keys, prompt.values)
        self.keys, self.values = self._zeros(prompt.keys, sequences, 0), self._zeros(prompt.values, sequences, 0)

    @staticmethod
    def _zeros(like: Tensor, sequences: int, capacity: int) -> Tensor:
        # Attention multiplies what is masked by 0, which is NaN for what uninitialized memory may hold.
        return like.new_zeros(sequences, like.shape[1], capacity, like.shape[3])

    def reserve(self, capacity: int) -> None:
        """Make room for as many tokens a row."""
        for name in ("keys", "values"):
            before = getattr(self, name)
            after = self._zeros(before, before.shape[0], capacity)
            after[:, :, : before.shape[2]] = before
            setattr(self, name, after)

    def put(self, row: int, prompt: DynamicLayer) -> None:
        """A prompt's keys and values [1, kv_heads, tokens, head_dim] as the beginning of a row."""
        self.keys[row, :, : prompt.keys.shape[2]] = prompt.keys[0]
        self.values[row, :, : prompt.values.shape[2]] = prompt.values[0]

    def move(self, source: int, target: int, length: int) -> None:
        """The first tokens of a row into another."""
        self.keys[target, :, :length] = self.keys[source, :, :length]
        self.values[target, :, :length] = self.values[source, :, :length]

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **_options: Any) -> tuple[Tensor, Tensor]:
        """Write a token of each row [rows, kv_heads, 1, head_dim] at its end; what attention reads then."""
        rows = self._rows
        self.keys[rows.writing, :, rows.ends] = key_states[:, :, 0]
        self.values[rows.writing, :, rows.ends] = value_states[:, :, 0]
        return self.keys[: rows.used, :, : rows.longest], self.values[: rows.used, :, : rows.longest]


class RowStepper:
    """Sequences as rows of one batch. See `qbench.engine.base.Stepper`.

    A sequence that waits while others step is computed and its token written all the same, and not counted.
    """

    def __init__(self, model: PreTrainedModel, sequences: int, context: int) -> None:
        self._model, self._sequences, self._context = model, sequences, context
        self._rows = Rows()
        self._layers: list[RowLayer] = []
        self._capacity = 0
        self._lengths: list[int] = []
        """Of every row in use."""
        self._row_of: dict[int, int] = {}
        """The row of every sequence."""

    @torch.inference_mode()
    def join(self, prompt: Tokens) -> tuple[int, Floats]:
        """The prompt is read alone, and waits for no step."""
        cache = DynamicCache(config=self._model.config)
        read = torch.tensor([prompt], device=self._model.device)
        logits = self._model(read, **keeping(self._model, cache), use_cache=True, logits_to_keep=1).logits
        row = len(self._lengths)
        if not self._layers:
            self._layers = [RowLayer(self._rows, layer, self._sequences) for layer in cache.layers]
        self._reserve(len(prompt))
        for layer, read_layer in zip(self._layers, cache.layers, strict=True):
            layer.put(row, read_layer)
        sequence = next(number for number in range(self._sequences) if number not in self._row_of)
        self._row_of[sequence] = row
        self._lengths.append(len(prompt))
        return sequence, _floats(logits[0, -1])

    @torch.inference_mode()
    def step(self, tokens: Mapping[int, int]) -> Floats:
        """One forward of all rows in use."""
        device, used = self._model.device, len(self._lengths)
        longest = max(self._lengths) + 1
        self._reserve(longest)
        ids = torch.zeros(used, 1, dtype=torch.int64)
        asked = [self._row_of[sequence] for sequence in tokens]
        ids[asked, 0] = torch.tensor(list(tokens.values()))
        ends = torch.tensor(self._lengths)
        rows = self._rows
        rows.writing, rows.ends = torch.arange(used, device=device), ends.to(device)
        rows.used, rows.longest = used, longest
        hidden = torch.arange(longest)[None] > ends[:, None]
        mask = torch.zeros(used, 1, 1, longest, dtype=self._model.dtype, device=device)
        mask.masked_fill_(hidden[:, None, None].to(device), torch.finfo(mask.dtype).min)
        with without_copies():
            logits = self._model(
                ids.to(device),
                attention_mask=mask,
                position_ids=rows.ends[:, None],
                **keeping(self._model, Cache(layers=self._layers)),
                use_cache=True,
                logits_to_keep=1,
            ).logits
        for row in asked:
            self._lengths[row] += 1
        return _floats(logits[asked, -1])

    @torch.inference_mode()
    def leave(self, sequence: int) -> None:
        """The last row moves into the place of this one."""
        row, last = self._row_of.pop(sequence), len(self._lengths) - 1
        length = self._lengths.pop()
        if row != last:
            for layer in self._layers:
                layer.move(last, row, length)
            self._lengths[row] = length
            moved = next(number for number, place in self._row_of.items() if place == last)
            self._row_of[moved] = row

    def close(self) -> None:
        """Give the buffers back."""
        self._layers, self._capacity = [], 0

    def _reserve(self, length: int) -> None:
        if length > self._capacity:
            doubled = max(length, 2 * self._capacity, FIRST_CAPACITY)
            self._capacity = max(length, min(doubled, self._context))
            for layer in self._layers:
                layer.reserve(self._capacity)


class SerialStepper:
    """A state for every sequence, read one after the other. See `qbench.engine.base.Stepper`."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model, self._name = model, state_name(model)
        self._positions = takes_positions(model)
        self._states: dict[int, Any] = {}
        self._lengths: dict[int, int] = {}

    def join(self, prompt: Tokens) -> tuple[int, Floats]:
        """The prompt is read at once."""
        sequence = next(number for number in range(len(self._states) + 1) if number not in self._states)
        self._states[sequence] = empty_state(self._model)
        self._lengths[sequence] = 0
        try:
            return sequence, self._read(sequence, prompt)
        except Exception:
            self.leave(sequence)
            raise

    def step(self, tokens: Mapping[int, int]) -> Floats:
        """A forward for each."""
        return np.stack([self._read(sequence, (token,)) for sequence, token in tokens.items()])

    @torch.inference_mode()
    def _read(self, sequence: int, tokens: Tokens) -> Floats:
        start = self._lengths[sequence]
        options: dict[str, Any] = {self._name: self._states[sequence]}
        if self._positions:
            options["position_ids"] = torch.arange(start, start + len(tokens), device=self._model.device)[None]
        read = torch.tensor([tokens], device=self._model.device)
        output = self._model(input_ids=read, use_cache=True, logits_to_keep=1, **options)
        self._states[sequence] = output[self._name]
        self._lengths[sequence] = start + len(tokens)
        return _floats(output.logits[0, -1])

    def leave(self, sequence: int) -> None:
        """Its state is given back."""
        del self._states[sequence], self._lengths[sequence]

    def close(self) -> None:
        """Give the states back."""
        self._states.clear()
        self._lengths.clear()


def _floats(logits: Tensor) -> Floats:
    found: Floats = logits.float().cpu().numpy()
    return found
