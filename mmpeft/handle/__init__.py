"""What a user holds: the adapters of a model, with loading, saving, reports, attention kernels and memory levels."""
