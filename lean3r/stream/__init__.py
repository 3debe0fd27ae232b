"""Reconstruction of streams, frame by frame."""
