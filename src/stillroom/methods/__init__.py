"""One paper, one file, one class; the file is the name."""
