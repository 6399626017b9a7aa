"""What a committed log entry does to a replica. Pure: no clock, no randomness, no secrets, no IO."""
