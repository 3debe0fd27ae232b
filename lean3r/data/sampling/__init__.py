"""Batches from data sets: choose views, crop them to one size, mix data sets by weight."""
