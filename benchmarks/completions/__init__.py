"""Completions over a dataset: throughput, faults, overload, journaling, memory and resume.

Every figure comes from a client in a fresh process against a loopback server in another; peers get the same
rows, in turn, within one run. ``python -m benchmarks.completions`` is the command.
"""
