"""qbench: which LLM quantization backend to use on your hardware, measured."""

__version__ = "0.1.0"
