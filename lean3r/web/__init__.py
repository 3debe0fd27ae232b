"""nano in a browser: the folder of a page that makes clouds from photos by itself, without a program behind it."""
