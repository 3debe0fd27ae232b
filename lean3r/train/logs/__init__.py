"""What a run says of itself: logs, events, pictures, the report."""
