"""The embedded texts: made from word lists, in any number, by a seed."""
