"""Is this person that address? Judged at the edge, before anything is proposed."""
