"""`keyserver demo`: a whole realm in real processes on loopback, from registration to a caught fork."""
