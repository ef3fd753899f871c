"""qbench: which LLM quantization backend to use on your hardware, measured."""

__version__ = "0.1.0"

DISTRIBUTION = "qbench-llm"
"""What pip installs. The import and the command are `qbench`, a name that another project has on the package index."""
