"""Heads of ours around a library's model: from a backbone's features to what a task asks for."""
