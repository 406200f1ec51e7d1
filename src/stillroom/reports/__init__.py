"""From a finished run folder to what people read: a page, a table, a model card, method pages.

Nothing here trains or loads weights, and importing it brings no torch.
"""
