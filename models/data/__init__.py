"""Data in training: what users did, the samples made of it, and batches of those."""
