"""The server's engine: completions over HTTP, decoding, fine-tunes alone and beside completions, the start.

Peers get the same weights and the same requests within the same run. ``python -m benchmarks.server`` is the
command.
"""
