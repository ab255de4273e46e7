"""Instruments that watch passes of a model: the memory of a step, traces, the frozen prefix, unfused attention."""
