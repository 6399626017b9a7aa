"""Ordered bytes, written atomically."""
