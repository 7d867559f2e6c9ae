"""The encoders and their heads."""
