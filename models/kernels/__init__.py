"""What training and serving compute with the same compiled loops; no torch."""
