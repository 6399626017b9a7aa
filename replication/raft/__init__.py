"""The engine of a cluster without other software: pysyncobj's elections and log rules in a durable shell."""
