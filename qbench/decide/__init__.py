"""From figures to decisions: which backend to use, what changed, whether a run is worse, and a model card.

Pure functions of a run's tables; they print nothing and import no torch. Begin with `recommend`, `compare`, `gate` or
`card`, which are the commands of the same names.
"""
