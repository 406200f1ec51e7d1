"""Answers sampled from a player."""
