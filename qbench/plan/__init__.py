"""What a configuration will do, known before anything is loaded: cells, memory, speed, and what cannot work.

Imports no torch. Begin with `cells` for what runs and in which order, `memory` for the predicted bytes.
"""
