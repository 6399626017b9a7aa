"""Hash trees: the prefix tree over indices (`tree`, `proof`) and the RFC 6962 log tree (`history`)."""
