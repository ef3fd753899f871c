"""What is predicted of a cell, by the engine that runs it."""

from __future__ import annotations

from qbench.config import Backend
from qbench.config.target import Target
from qbench.model.architecture import Architecture
from qbench.plan.llama_cpp import LlamaCppPrediction
from qbench.plan.memory import Prediction

PREDICTIONS: dict[str, type[Prediction]] = {
    "torch": Prediction,
    "llama_cpp": LlamaCppPrediction,
    "mlx": Prediction,
}
"""By `qbench.config.Backend.engine`."""


def predict(model: Architecture, backend: Backend, target: Target) -> Prediction | None:
    """The prediction of a model that a backend holds on a target; None of one that a server holds."""
    made = PREDICTIONS.get(backend.engine)
    return made(model, backend, target) if made else None
