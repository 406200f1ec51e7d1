"""Rows and examples to batches; streams; made-up worlds."""
