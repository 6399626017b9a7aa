"""Copies of one moment of a replica: taken while it runs, checked, backed up, restored."""
