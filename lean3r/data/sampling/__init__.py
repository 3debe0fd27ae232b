"""From data sets to batches: views that go together, cut to one size, mixed with weights."""
