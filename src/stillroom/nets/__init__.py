"""Small modules that a method lends to the engine."""
