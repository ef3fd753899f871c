"""What runs a model, behind one contract.

Begin with `torch`.
"""
