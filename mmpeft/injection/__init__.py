"""How edits get into a model and out again: grafting, planning, the subtree, routing, merging."""
