"""A server of OpenAI's HTTP API as an engine: the HTTP client, the process behind a command, what a server tells.

Nothing here imports torch. Begin with `client`, then `engine`.
"""
