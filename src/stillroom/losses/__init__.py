"""Pure functions from tensors to one value a row, pair or example; nothing is reduced or masked."""
