"""What a replica keeps, as tests of checks and backups need it: built by a script, spoiled by a plant."""
