"""Optimizers of other packages behind the same ``step()``; one file a package."""
