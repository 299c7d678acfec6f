"""Tensors: data preparation, the models, their losses, their loops and their evaluation."""
