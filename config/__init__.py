"""Names, paths and numbers with units: every setting of the product, typed and frozen."""
