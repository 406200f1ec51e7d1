"""The loop that knows no method by name: steps, players, processes, checkpoints, records."""
