"""The state of a run on disk: write it atomically, as whole files or shards, and restore it."""
