"""Files that several data sets are made of: pictures and maps, camera files, lenses."""
