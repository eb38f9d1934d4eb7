"""The audit of a run: its log, the evidence drawn from it, and what verifies that evidence."""
