"""Augmentations: one implementation for training, demo and tests. See spec.py for the table."""
