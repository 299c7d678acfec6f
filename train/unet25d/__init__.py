"""A 2.5-D U-Net with L1: plain regression, the row the paper lacks."""
