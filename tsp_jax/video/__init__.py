"""Reading and writing video files: the only door to FFmpeg."""
