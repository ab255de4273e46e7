"""The trainer and its parts; ``mmpeft.training.config`` needs no torch."""
