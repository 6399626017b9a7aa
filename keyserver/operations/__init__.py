"""Durable workflows as transition tables. Pure: no clock, no randomness, no secrets, no IO."""
