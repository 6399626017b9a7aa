"""One order, agreed. Payloads are opaque bytes."""
