"""One module a backend kind; `base` and names with a leading underscore are shared code, not kinds."""
