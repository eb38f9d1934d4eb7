"""The federated systems: one readable file each, free of keys, noise and messages."""
