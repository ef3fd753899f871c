"""The plots of `qbench plot`: one function a plot, drawn by matplotlib.

Begin with `charts`.
"""
