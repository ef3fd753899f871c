"""The loaded model as lm-evaluation-harness's own wrapper runs it: every distinct prompt is read whole."""

from __future__ import annotations

import functools
import logging
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM

from qbench.backends.base import LoadedModel
from qbench.errors import QbenchError
from qbench.measure.lm_eval.journal import Journal
from qbench.measure.lm_eval.prefix_groups import TokenCount, count_unshared

log = logging.getLogger(__name__)

TokenRequest = tuple[tuple[str, str], list[int], list[int]]
"""lm-evaluation-harness's tokenized request: (context, continuation) as texts, and the tokens of each."""


class HarnessModel(HFLM):  # type: ignore[misc]  # lm_eval has no types
    """lm-evaluation-harness's wrapper around the loaded model, which it neither moves nor casts.

    Texts become tokens exactly as the wrapper makes them, but a prompt once, not once for each of its answers. The
    log-softmax is taken in float32: rounded to 16 bits, letters that differ would tie.
    """

    def __init__(self, loaded: LoadedModel, tokenizer: Any, batch_size: int) -> None:
        super().__init__(pretrained=loaded.model, tokenizer=tokenizer, batch_size=batch_size, softmax_dtype="float32")
        # A prompt alternates with prompt + answer, so that two entries are enough.
        self._encode = functools.lru_cache(maxsize=2)(super().tok_encode)
        self.journal = Journal(None)
        """Of batches that need not be read again; lm-evaluation-harness's own code has no use for it."""
        self.forward_tokens = TokenCount()
        """What the model read, so far."""
        self.stock_tokens = TokenCount()
        """What lm-evaluation-harness's own wrapper would have read."""

    def tok_encode(self, string: str, **options: Any) -> list[int]:
        """The wrapper's own tokens; the list is shared by the requests of a question."""
        tokens: list[int] = self._encode(string, **options)
        return tokens

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """As the wrapper does, without its progress bars."""
        answers: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return answers

    def check(self, requests: list[TokenRequest]) -> TokenCount:
        """Count what the wrapper would read for `requests`, and warn of prompts that lose their beginning.

        Raises:
            QbenchError: a continuation has no token of its own, or more than the model can read.
        """
        for (_, continuation), _, answer in requests:
            if not 0 < len(answer) <= self.max_length:
                raise QbenchError(
                    f"the continuation {continuation[:60]!r} has {len(answer)} tokens after its prompt: "
                    f"a model of {self.max_length} tokens scores 1 to {self.max_length}. Leave this task out"
                )
        # The last token of prompt + answer is only predicted, never read.
        longest = self.max_length + 1
        cut = {texts[0] for texts, prompt, answer in requests if len(prompt) + len(answer) > longest}
        if cut:
            log.warning(
                "%d of %d prompts exceed the model's %d tokens and lose their beginning",
                len(cut), len({texts[0] for texts, *_ in requests}), self.max_length,
            )  # fmt: skip
        found = count_unshared((tokens for _, *tokens in requests), self.max_length, self.batch_size)
        self.stock_tokens += found
        return found


class StockModel(HarnessModel):
    """The wrapper's own batches, but logits only of positions that predict an answer.

    Over a vocabulary of 128k those of all positions of a batch are gigabytes.
    """

    def __init__(self, loaded: LoadedModel, tokenizer: Any, batch_size: int) -> None:
        super().__init__(loaded, tokenizer, batch_size)
        self._answer_tokens = 1

    def _loglikelihood_tokens(self, requests: list[TokenRequest], **options: Any) -> list[tuple[float, bool]]:
        self.forward_tokens += self.check(requests)
        self._answer_tokens = max((len(answer) for _, _, answer in requests), default=1)
        answers: list[tuple[float, bool]] = super()._loglikelihood_tokens(requests, **options)
        return answers

    def _model_call(self, inps: torch.Tensor, **_encoder_decoder: Any) -> torch.Tensor:
        # Rows are padded with zeros on the right. Token 0 at a prompt's end would count as padding: more is kept then.
        padding = int((inps.flip(1).cumsum(1) == 0).sum(1).max())
        with torch.no_grad():
            output = self.model(inps, use_cache=False, logits_to_keep=padding + self._answer_tokens)
        logits: torch.Tensor = output.logits
        return logits
