"""Convolutions as a CPU computes them fast."""
