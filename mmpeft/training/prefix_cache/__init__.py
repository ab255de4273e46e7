"""Outputs of a frozen prefix of the model, computed once for each sample."""
