"""File formats of several data sets: pictures and maps, camera files, lenses."""
