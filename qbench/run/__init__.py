"""Running cells: each in a process of its own, resumed where it stopped, rows on disk as they exist.

The runner takes a plan, has an executor (`local`, or `ray/`) start workers, and keeps the tables; `worker` is the child
process, in which `cell` loads a model and takes the measures. Begin with `runner`, then `cells`, then `cell`.
"""
