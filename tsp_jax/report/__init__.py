"""One HTML page about features, predictions and training runs."""
