"""The one error that people see: something that they can mend."""


class Failure(ValueError):
    """What a person can mend: says what, what was given, and what to do."""
