"""What teachers said, kept: an append-only store of answers, and what they cost."""
