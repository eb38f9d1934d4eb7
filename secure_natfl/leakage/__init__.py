"""`natfl attack`: the table of attacks played on a finished run's own systems."""
