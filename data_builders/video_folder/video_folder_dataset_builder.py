"""A folder of videos with a ground truth of its own as span records."""

from data_builders import span_builder


class Builder(span_builder.SpanBuilder):
    """README.md tells what it is."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    Put into MANUAL_DIR, with `python -m data_builders.NAME --help` for each:
      videos/                       the videos, from `standardize`
      train.csv, valid.csv, …       a ground truth for each split, from `groundtruth`
      action_label_mapping.json     from `labels`
    More than about a gigabyte of records is built by `python -m data_builders.build --dataset video_folder`.
    """
