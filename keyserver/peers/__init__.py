"""What replicas say to each other beside the log: endorsements, heads, how they are."""
