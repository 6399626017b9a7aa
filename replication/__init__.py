"""One order of opaque payloads, agreed and durable."""
