"""The contract as messages; generated code lies beside the files it is made from."""
