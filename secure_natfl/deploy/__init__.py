"""A federation on real machines: each party a durable state machine, asked phase by phase."""
