"""A compiled step beside the same step as it is."""

from __future__ import annotations

import numpy as np
import torch

from qbench.engine.torch.decode import generate
from qbench.engine.torch.loaded import LoadedModel
from qbench.engine.torch.static import CompiledDecoder, GraphDecoder
from tests.support import tiny_llama as tiny

NEW_TOKENS = 8


def assert_compiles(loaded: LoadedModel) -> None:
    """The step is one graph, which generates the tokens of the step that is not compiled, twice.

    Traced and run without fusing, so that nothing is rounded in other places.
    """
    size, seq_len = len(tiny.TOKENS), tiny.TOKENS.shape[1] + NEW_TOKENS
    expected = generate(GraphDecoder(loaded.model, size, seq_len), tiny.TOKENS, NEW_TOKENS).tokens
    try:
        decoder = CompiledDecoder(loaded.model, size, seq_len, backend="aot_eager")
        with torch.compiler.set_stance("fail_on_recompile"):
            for _ in range(2):
                assert np.array_equal(generate(decoder, tiny.TOKENS, NEW_TOKENS).tokens, expected)
    finally:
        torch.compiler.reset()
