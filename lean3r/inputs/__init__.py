"""From the user's paths to the network's input: listing, safe decoding, video, masks, known cameras."""
