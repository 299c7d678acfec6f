"""A model in use learns on from a hospital's own pairs, and is exported only if no organ got worse."""
