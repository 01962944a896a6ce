"""From a case to its record."""
