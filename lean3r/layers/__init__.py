"""Parts that every backbone shares; none of them branches on a model's name."""
