"""What the tasks of one modality share: each puts a model, data, an objective and the trainer together."""
