"""Checkpoints that papers' own code writes, one file each."""
