"""Temporal action localization: detections and proposals, ground truth, and scores by the protocols in use."""
