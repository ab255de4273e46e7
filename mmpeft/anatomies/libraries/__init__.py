"""One reader for each model library, and what they share."""
