"""How a federation stands while it runs: metrics, health, logs and a live view, from disk alone.

Nothing here asks a party or holds a key. What is shown comes from the audit log, the transcript's
index and the file system, in which there are names, counts, digests and costs, and no data.
"""
