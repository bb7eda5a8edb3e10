"""One run: its settings, the training loop, checkpoints, the published model."""
