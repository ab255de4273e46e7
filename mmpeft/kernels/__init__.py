"""Functions where the time and the memory go."""
