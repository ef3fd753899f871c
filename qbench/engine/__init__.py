"""What runs a model, behind one contract: measures know engines, never a library.

An engine may import what its model runs on, and of qbench the model, the machine, the records and the configuration.
`base` is the contract and imports no torch; `torch` runs transformers models. Begin with `base`.
"""
