"""Tensors to graphs: a checkpoint becomes a verified bundle folder."""
