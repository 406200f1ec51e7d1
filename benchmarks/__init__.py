"""What the work costs beside other libraries and the bare matrix products: ``make bench``.

Each file measures one thing and runs by itself: ``python -m benchmarks.head --help``. Everything
that is timed or weighed runs in a process of its own (``fresh``), with one thread.
"""
