"""Logs for tests of the machine: keys and users from a seed, one replica in memory, a script that provokes
everything.
"""
