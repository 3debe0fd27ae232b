"""Losses on cameras and geometry, the objectives built from them, and objectives with a teacher."""
