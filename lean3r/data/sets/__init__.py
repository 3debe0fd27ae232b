"""Data sets on disk, one file each: the scenes of a folder, and their pictures, cameras and depth."""
