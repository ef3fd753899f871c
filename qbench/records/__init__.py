"""What a run leaves behind: row types, tables, answers and run.json, written and read.

Imports no torch and computes nothing. Begin with `rows`: its classes are the columns of every table.
"""
