"""Texts for language models: readers of the field's formats, and small generated sets for `tiny/llm`."""
