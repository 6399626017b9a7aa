"""Callers that mean harm: HTTP/2 frames by hand, over TLS, and the loads made of them."""
