"""Evaluation measured beside the tools that it takes the place of, and its gate in the long run."""
