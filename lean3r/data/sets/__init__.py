"""Data sets on disk, a file each: which scenes a folder holds, where their pictures, cameras and depth are."""
