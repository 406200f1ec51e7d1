"""A teacher's answers: checked, judged, filtered, paired and mixed, each with its provenance."""
