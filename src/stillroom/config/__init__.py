"""Strict YAML to objects; the only room that knows pydantic."""
