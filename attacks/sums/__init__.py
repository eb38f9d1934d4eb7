"""Attacks on weighted sums: differences, long observation, probing, poisoning."""
