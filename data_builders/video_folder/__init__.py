"""The TFDS builder of span records of any annotated videos."""
