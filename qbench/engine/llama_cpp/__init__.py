"""Runs a GGUF file with llama.cpp, through the C API of llama-cpp-python.

Imports no torch. Begin with `engine`; `context` holds what the library allocates.
"""
