"""Runs of systems that learn from sums: terms, rounds, state, scores and reports."""
