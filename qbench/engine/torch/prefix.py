"""Log-likelihoods of many answers, reading what prompts have in common once.

The prompts of an MMLU subject begin with the same five examples, and the choices of a question stand behind the same
prompt. The keys and values of a shared beginning are computed once, at batch 1, and lent to every batch of what
remains (as in Hydragen, arXiv:2402.05099, but without splitting the products); choices of several tokens stand in one
row behind one copy of their prompt, with a mask that hides them from each other (a token tree, as in SpecInfer,
arXiv:2305.09781).
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from qbench.compat.transformers import Cache, DynamicLayer, attention
from qbench.engine import prefix_groups
from qbench.engine.base import Answer, Journal, KVCache, Query, Tokens
from qbench.engine.prefix_groups import Group, Row
from qbench.engine.torch import as_decoded
from qbench.engine.torch.loaded import LoadedModel
from qbench.engine.torch.step import keeping, takes_positions


class PrefixReader:
    """Answers queries group by group. A batch stands for `batch_size` sequences at most."""

    def __init__(
        self, loaded: LoadedModel, batch_size: int, journal: Journal | None, kv_cache: KVCache = "16bit"
    ) -> None:
        self._model, self._device, self._dtype = loaded.model, loaded.device, loaded.dtype
        self._batch_size = batch_size
        self._journal = journal
        self._kv_cache = kv_cache
        self._explicit_positions = takes_positions(loaded.model)

    def read(self, groups: Sequence[Group]) -> Iterator[dict[Query, Answer]]:
        """The answers of every batch: first those in the journal, then the others as they are read."""
        missing: dict[int, list[tuple[Row, ...]]] = {}
        for group in groups:
            for rows in prefix_groups.batches(group, self._batch_size):
                known = self._journal.get(prefix_groups.name_of(rows)) if self._journal else None
                if known is None:
                    missing.setdefault(id(group), []).append(rows)
                else:
                    yield dict(zip(prefix_groups.queries_of(rows), known, strict=True))
        for group, cache in self._caches(_with_parents(groups, missing)):
            for rows in missing.get(id(group), ()):
                found = self._read_rows(rows, len(group.prefix), cache)
                yield found
                # Not before: whoever took them refuses NaN.
                if self._journal:
                    answers = [found[query] for query in prefix_groups.queries_of(rows)]
                    self._journal.put(prefix_groups.name_of(rows), answers)

    def _caches(self, groups: Sequence[Group]) -> Iterator[tuple[Group, Cache | None]]:
        """Every group with its prefix in a cache; caches that no further group builds on are given up."""
        open_caches: list[tuple[Group, Cache]] = []
        for group in groups:
            while open_caches and open_caches[-1][0] is not group.parent:
                open_caches.pop()
            cache = None
            if group.prefix:
                cache = self._read_prefix(group, open_caches[-1][1] if open_caches else None)
                open_caches.append((group, cache))
            yield group, cache

    @torch.no_grad()
    def _read_prefix(self, group: Group, before: Cache | None) -> Cache:
        """Keys and values of a group's prefix, for batches of any size; those of its parent's are there."""
        cache = DynamicCache(config=self._model.config)
        if before is not None:
            for layer, known in zip(cache.layers, before.layers, strict=True):
                layer.update(known.keys, known.values)
        tokens = torch.tensor([group.fresh], device=self._device)
        positions = torch.arange(len(group.prefix) - len(group.fresh), len(group.prefix), device=self._device)[None]
        self._model(tokens, position_ids=positions, **keeping(self._model, cache), use_cache=True, logits_to_keep=1)
        return Cache(layers=[LentLayer(layer.keys, layer.values) for layer in cache.layers])

    @torch.no_grad()
    def _read_rows(self, rows: Sequence[Row], prefix: int, cache: Cache | None) -> dict[Query, Answer]:
        """Every answer of `rows`, whose first `prefix` tokens are in the cache."""
        layout = lay_out(rows, prefix).to(self._device)
        options: dict[str, Any] = {}
        if self._explicit_positions:
            options["position_ids"] = layout.positions
        if layout.branches.any():
            options["attention_mask"] = layout.mask(prefix, self._dtype)
        # Positions that predict something in any row of the batch.
        kept = sorted({position for _, position in layout.predicting})
        if self._kv_cache == "16bit":
            logits = self._model(
                layout.tokens,
                **keeping(self._model, cache),
                use_cache=cache is not None,
                logits_to_keep=torch.tensor(kept, device=self._device),
                **options,
            ).logits
        else:  # prompts share nothing then
            logits = torch.cat(list(as_decoded.read(self._model, self._kv_cache, layout.tokens, kept)), dim=1)
        columns = {position: column for column, position in enumerate(kept)}
        index = torch.tensor([(row, columns[position]) for row, position in layout.predicting], device=self._device)
        # float32 only for what is looked at.
        logprobs = logits[index[:, 0], index[:, 1]].float().log_softmax(-1)
        return layout.read_off(logprobs)


TOLERANCES = {torch.float32: 1e-3}
"""Difference of a token's log-probability, in nats, by dtype. Logits of 16 and more are 1/8 apart in bfloat16, and sums
of another order may differ by such a step; positions or masks that are wrong by a place differ by 0.3 and more."""
TOLERANCE_16BIT = 0.25


def sharing_agrees(loaded: LoadedModel, groups: Sequence[Group], batch_size: int) -> bool:
    """Whether answers of the longest prompts that share a beginning, and of those that branch, are the plain ones.

    That a model may share is not known of its name: the mask of GPT-Neo's local layers counts places in the row.
    """
    rows = [(group, row) for group in groups for row in group.rows]
    after_prefix = [(group, row) for group, row in rows if group.prefix]
    branching = [(group, row) for group, row in rows if len(row.branches) > 1]
    for candidates in (after_prefix, branching):
        group, row = max(candidates, key=lambda pair: pair[1].tokens, default=(None, None))
        if group and row and not _agree(loaded, group, row, batch_size):
            return False
    return True


def _agree(loaded: LoadedModel, group: Group, row: Row, batch_size: int) -> bool:
    """Whether a row's answers are the same after its group's prefix and with its branches as they are in plain rows."""
    queries = prefix_groups.queries_of([row])
    shared = [*_ancestors(group), replace(group, rows=(row,))]
    plain = prefix_groups.plan(queries, batch_size=batch_size, share=False)
    found: list[dict[Query, Answer]] = []
    for planned in (shared, plain):
        answers: dict[Query, Answer] = {}
        for batch in PrefixReader(loaded, batch_size, None).read(planned):
            answers |= batch
        found.append(answers)
    differences = [abs(found[0][query][0] - found[1][query][0]) / len(query.answer) for query in queries]
    # NaN is refused by whoever takes the answers.
    return not max(differences) > TOLERANCES.get(loaded.dtype, TOLERANCE_16BIT)


def _ancestors(group: Group) -> list[Group]:
    """The groups that a group builds on, outermost first, without rows of their own."""
    return [] if group.parent is None else [*_ancestors(group.parent), group.parent]


def _with_parents(groups: Sequence[Group], chosen: Container[int]) -> list[Group]:
    """The groups whose id is chosen, and those that they build on, in order."""
    needed: set[int] = set()
    for group in reversed(groups):
        if (id(group) in chosen or id(group) in needed) and group.parent is not None:
            needed.add(id(group.parent))
    return [group for group in groups if id(group) in chosen or id(group) in needed]


def can_share(model: PreTrainedModel) -> bool:
    """Whether keys and values of a prefix serve other rows, and rows may branch.

    True of transformers' own models that take positions and a mask as they are given and whose cache is nothing but
    the keys and values of every token. Not of sliding windows and recurrent states, nor where the length of a prompt
    changes all of its keys (dynamic NTK, LongRoPE) or a bias is counted from the place in the row (ALiBi).
    """
    config = model.config.get_text_config(decoder=True)
    rope = getattr(config, "rope_parameters", None) or {}
    return (
        type(model).__module__.startswith("transformers.models.")
        and takes_positions(model)
        and attention(model) in ("sdpa", "eager")
        and all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)
        and rope.get("rope_type", "default") not in ("dynamic", "longrope")
        and not getattr(config, "alibi", False)
    )


class LentLayer(DynamicLayer):  # type: ignore[misc]  # transformers has no types
    """Keys and values of a prefix, [1, heads, tokens, head_dim] each, in front of those of any batch.

    It keeps nothing of a batch: memory holds the prefix once, and nothing has to be cut off before the next one.
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **_options: Any) -> tuple[Tensor, Tensor]:
        """The prefix and the new states, joined for each row of the batch."""
        rows = (len(key_states), -1, -1, -1)
        keys = torch.cat([self.keys.expand(rows), key_states], dim=-2)
        return keys, torch.cat([self.values.expand(rows), value_states], dim=-2)


@dataclass(slots=True)
class Layout:
    """Rows as tensors [rows, width], int64, padded on the right."""

    tokens: Tensor
    positions: Tensor
    """Of every token in its sequence; behind the end of a row they go on, or are 0 if some row has several branches."""
    branches: Tensor
    """0 for stems and branches that are alone; else the branch's number. -1 for padding if some row has several."""
    predicting: dict[tuple[int, int], int] = field(default_factory=dict)
    """(row, place) of every token whose logits are looked at, with its number among them."""
    answers: dict[Query, list[int]] = field(default_factory=dict)
    """For every query, the numbers of the tokens that predict its answer, in order."""

    def to(self, device: torch.device) -> Layout:
        """The same on another device."""
        tensors = {name: getattr(self, name).to(device) for name in ("tokens", "positions", "branches")}
        return replace(self, **tensors)

    def mask(self, prefix: int, dtype: torch.dtype) -> Tensor:
        """What each token may attend to, as a number added to its scores: [rows, 1, width, prefix + width].

        That is the prefix, and of its own row what stands before it in the stem or its own branch.
        """
        rows, width = self.branches.shape
        known = self.branches.new_ones(rows, width, prefix, dtype=torch.bool)
        before = self.branches.new_ones(width, width, dtype=torch.bool).tril()
        own = self.branches[:, :, None] == self.branches[:, None, :]
        seen = torch.cat([known, before & (own | (self.branches[:, None, :] == 0))], dim=-1)
        hidden = torch.finfo(dtype).min
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, hidden)[:, None]

    def read_off(self, logprobs: Tensor) -> dict[Query, Answer]:
        """The answers from logprobs [tokens that predict, vocabulary]."""
        tokens = torch.tensor([token for query in self.answers for token in query.answer], device=logprobs.device)
        index = torch.tensor([i for numbers in self.answers.values() for i in numbers], device=logprobs.device)
        values = logprobs[index, tokens].tolist()
        best = (logprobs.argmax(-1)[index] == tokens).tolist()
        found: dict[Query, Answer] = {}
        start = 0
        for query in self.answers:
            end = start + len(query.answer)
            found[query] = sum(values[start:end]), all(best[start:end])
            start = end
        return found


def lay_out(rows: Sequence[Row], prefix: int) -> Layout:
    """What a forward reads of `rows` after their first `prefix` tokens: stems, each followed by its branches."""
    width = max(row.tokens for row in rows) - prefix
    layout = Layout(
        tokens=torch.zeros(len(rows), width, dtype=torch.int64),
        positions=torch.arange(prefix, prefix + width).repeat(len(rows), 1),
        branches=torch.zeros(len(rows), width, dtype=torch.int64),
    )
    for number, row in enumerate(rows):
        _place(layout, number, row, prefix)
    if layout.branches.any():
        # Counted on, padding would leave the model's positions: rows that branch are longer than their sequences.
        for number, row in enumerate(rows):
            layout.branches[number, row.tokens - prefix :] = -1
            layout.positions[number, row.tokens - prefix :] = 0
    return layout


def _place(layout: Layout, number: int, row: Row, prefix: int) -> None:
    tokens = list(row.stem[prefix:])
    last = len(tokens) - 1
    starts: dict[Tokens, int] = {}
    for branch_number, branch in enumerate(row.branches, start=1):
        starts[branch] = start = len(tokens)
        tokens += branch
        # A row with one branch is an ordinary sequence.
        if len(row.branches) > 1:
            layout.branches[number, start : len(tokens)] = branch_number
            layout.positions[number, start : len(tokens)] = torch.arange(len(branch)) + len(row.stem)
    layout.tokens[number, : len(tokens)] = torch.tensor(tokens)
    for answer in row.answers:
        start = starts.get(answer[:-1], 0)
        places = [last, *range(start, start + len(answer) - 1)]
        numbers = [layout.predicting.setdefault((number, place), len(layout.predicting)) for place in places]
        layout.answers[Query(row.stem, answer)] = numbers
