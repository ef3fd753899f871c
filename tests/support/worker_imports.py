"""What workers import, for the process that they are forked from. No part of it may start a thread."""

import accelerate  # noqa: F401
import lm_eval  # noqa: F401
import pandas  # noqa: F401
import scipy.stats  # noqa: F401
from transformers.models.llama import modeling_llama  # noqa: F401

import qbench.backends.fp16
import qbench.backends.int4
import qbench.measure.lm_eval.adapter
import qbench.run.worker  # noqa: F401
