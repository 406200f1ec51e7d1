"""Claims of papers, re-tested by a command."""
