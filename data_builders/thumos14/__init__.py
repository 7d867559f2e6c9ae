"""The TFDS builder of THUMOS14's span records."""
