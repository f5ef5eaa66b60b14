"""From models to samples, and from samples to pictures."""
