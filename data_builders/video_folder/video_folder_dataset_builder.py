"""Your own videos and ground truth as span records."""

from data_builders import span_builder


class Builder(span_builder.SpanBuilder):
    """Builds the span records that README.md describes."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    Put into MANUAL_DIR, with `python -m data_builders.NAME --help` for each:
      videos/                       the videos, from `standardize`
      train.csv, valid.csv, …       the ground truth of each split, from `groundtruth`
      action_label_mapping.json     from `labels`
    For more than about a gigabyte of records, use `python -m data_builders.build --dataset video_folder`.
    """
