"""Doors: they translate and authenticate, nothing more."""
