"""What is written before a replica first starts: keys, certificates, folders, configuration."""
