"""The attack table: one row a case in `table/*.toml`, played against the code that must refuse it.

`table` reads the rows. Each other module is a surface: it makes inputs (methods `make_*`) and asks the
shipped code for its verdict on them (methods `judge_*`). Nothing here decides what is right; the rows do.
"""
