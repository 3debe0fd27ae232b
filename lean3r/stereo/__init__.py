"""Stereo: depth measured between pictures with good cameras, around the depth of a network."""
