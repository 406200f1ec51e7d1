"""Studies: each file explains runs that are over, and trains nothing."""
