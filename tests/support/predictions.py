"""A small model whose bytes are predicted, and its measured peak."""

import torch

from qbench.config.target import Target
from qbench.engine.torch.decode import make_decoder
from qbench.engine.torch.engine import TorchEngine
from qbench.engine.torch.loaded import LoadedModel
from qbench.engine.torch.memory import peak_bytes
from qbench.machine import environment
from qbench.measure.base import random_prompt

CPU = Target("cpu", 2, environment.detect().cpu_features)

DIMENSIONS = {
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 2048,  # with which a thread's buffers of torch's own product are under 2 %
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}


def measured_peak(loaded: LoadedModel, batch_size: int, prompt: int, seq_len: int) -> int:
    tokens = torch.from_numpy(random_prompt(TorchEngine(loaded), batch_size, prompt, seed=0))

    def forward() -> None:
        with torch.inference_mode():
            make_decoder(loaded.model, "eager", batch_size, seq_len).prefill(tokens)

    return sum(peak_bytes(loaded, forward))
