"""The synthetic world: places, textures, camera paths, and a renderer with exact geometry."""
