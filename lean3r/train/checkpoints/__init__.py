"""The state of a run on disk: whole files or shards, written atomically, and back into a run."""
