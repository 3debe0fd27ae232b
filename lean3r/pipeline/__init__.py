"""From files to a Reconstruction: load a model, read the views, run the network, refine, fuse the points."""
