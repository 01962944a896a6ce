"""The report as text: one format a module."""
