"""The torch engine: transformers models, generated eagerly or by a CUDA graph. Begin with `decode`."""
