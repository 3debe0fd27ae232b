"""Time and memory of our models and of others' in one run, each in a process of its own (docs/how-to/benchmark.md)."""
