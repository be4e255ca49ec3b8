"""Slow algorithms in the letters of their papers, to compare the fast ones with."""
