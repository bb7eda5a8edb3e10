"""Images -> batches of two views."""
