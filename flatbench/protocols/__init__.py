"""Protocols: the files, what they may hold, and the cases that they describe."""
