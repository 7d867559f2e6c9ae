"""ActivityNet-v1.3 as span records."""

from data_builders import span_builder


class Builder(span_builder.SpanBuilder):
    """Builds the span records that README.md describes."""

    NUM_CLASSES = 200
    HOMEPAGE = "http://activity-net.org"
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    Ask for the videos at http://activity-net.org/download.html (many are no longer on YouTube), and fetch
    activity_net.v1-3.min.json there. Then, with `python -m data_builders.NAME --help` for each:
      standardize   every video to 30 fps, into MANUAL_DIR/videos
      metadata      to measure those videos
      groundtruth   --format activitynet, once for each subset, into MANUAL_DIR/train.csv and MANUAL_DIR/valid.csv
      labels        --dataset activitynet, whose action_label_mapping.json goes into MANUAL_DIR
    The training subset takes hours and hundreds of gigabytes: use `python -m data_builders.build --dataset activitynet`.
    """
