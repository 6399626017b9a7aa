"""Logs name no user and hold no secret: all that tests make processes and rooms log is searched for both.

`finding` is the search; `plugin` collects what is searched, in every run of the suite.
"""
