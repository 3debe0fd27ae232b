"""Output of a run: logs, events, pictures, the report."""
