"""What a step minimises: losses on cameras and geometry, the objectives made of them, objectives with a teacher."""
