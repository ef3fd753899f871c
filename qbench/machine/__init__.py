"""The machine beside a measurement: hardware and versions, bandwidth, GPU, and what else ran during a trial.

Imports no torch. Begin with `environment`.
"""
