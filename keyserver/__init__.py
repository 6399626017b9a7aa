"""The service: a replica of a realm, from the committed log entry to the answer with its proof."""
