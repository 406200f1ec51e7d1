"""What a teacher can say, and how it is asked."""
