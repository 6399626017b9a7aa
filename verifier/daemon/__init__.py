"""The full verifier: replays every update, ratifies epoch heads, keeps evidence."""
