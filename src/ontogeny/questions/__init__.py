"""What can be asked of what was grown: whence, whether whole, what it saw; runs and originals."""
