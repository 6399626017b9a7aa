"""A whole realm on this machine, in real processes."""
