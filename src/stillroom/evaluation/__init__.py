"""Numbers of a model on data; each file is one evaluator, named after it."""
