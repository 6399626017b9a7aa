"""A second reading of the machine's rules, written naively and sharing no rule with the first."""
