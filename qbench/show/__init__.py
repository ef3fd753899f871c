"""What people read: tables in the terminal, progress, and sentences; `plots` and `report`.

Imports everything below the command line, and no torch. Begin with `tables` for the terminal, `plots` for figures and
`report` for the page.
"""
