"""Heads: from tokens to cameras, depth and confidence."""
