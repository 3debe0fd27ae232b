"""Heads: cameras, depth and confidence from tokens."""
