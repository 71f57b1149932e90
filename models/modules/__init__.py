"""What networks are built of: attention, pooling, clustering, losses."""
