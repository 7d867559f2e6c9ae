"""The TFDS builder of ActivityNet-v1.3's span records."""
