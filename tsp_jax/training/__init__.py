"""Training of any task: the loop, its step, its folder and its log."""
