"""The synthetic world: places, textures, camera paths, and the renderer that makes exact scenes of them."""
