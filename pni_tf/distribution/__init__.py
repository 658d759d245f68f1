"""Who works together, whether all are there, and how they share."""
