"""From videos to features: clips decoded by threads, encoded in batches."""
