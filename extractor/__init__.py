"""From a sequence to its interest state: projection, clustering, the record of the state."""
