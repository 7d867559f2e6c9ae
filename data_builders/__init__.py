"""Commands that prepare videos and annotations, and the builders that turn both into records."""
