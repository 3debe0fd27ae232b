"""Runs of benchmarks: a folder of predictions, written first, and of scores, made from its files alone."""
