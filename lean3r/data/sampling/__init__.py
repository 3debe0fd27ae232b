"""From data sets to batches: choose views, crop them to one size, mix data sets by weight."""
