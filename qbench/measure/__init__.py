"""One module a measure. A measure knows no backend: it takes a loaded model and gives rows."""
