"""From what the user names to what the network sees: listing, safe decoding, video, masks, cameras that are given."""
