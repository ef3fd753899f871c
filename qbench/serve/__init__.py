"""qbench's own engines behind an OpenAI-compatible API.

Begin with `api`, the routes, and `served`, what they ask of a model. `schema` is what a request may say, `answers`
makes text of tokens, `wire` what goes over the wire of that.
"""
