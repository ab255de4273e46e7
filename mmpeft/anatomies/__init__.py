"""The map of a model: sites, towers and blocks, and the readers that draw it."""
