"""Networks made to say signals about a batch."""
