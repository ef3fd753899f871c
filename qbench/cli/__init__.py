"""The command line: a module a group of commands.

Each command parses its arguments, calls one function of the package and prints what it returns. It may import every
other folder, which it does inside the command, so that `qbench --help` loads none of them. Begin with `app`.
"""
