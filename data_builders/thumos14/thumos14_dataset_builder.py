"""THUMOS14 as span records."""

from data_builders import span_builder


class Builder(span_builder.SpanBuilder):
    """Builds the span records that README.md describes."""

    NUM_CLASSES = 20
    HOMEPAGE = "https://www.crcv.ucf.edu/THUMOS14/"
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    Fetch the validation and test videos and their temporal annotations from https://www.crcv.ucf.edu/THUMOS14/download.html
    (200 and 213 videos have annotations). Then, with `python -m data_builders.NAME --help` for each:
      standardize   every video to 30 fps, into MANUAL_DIR/videos
      metadata      to measure those videos
      groundtruth   --format thumos14, once for each subset, into MANUAL_DIR/valid.csv and MANUAL_DIR/test.csv
      labels        --dataset thumos14, whose action_label_mapping.json goes into MANUAL_DIR
    Then `python -m data_builders.build --dataset thumos14`.
    """
