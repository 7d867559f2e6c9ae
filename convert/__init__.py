"""PyTorch checkpoints of TSP to and from this project's own."""
