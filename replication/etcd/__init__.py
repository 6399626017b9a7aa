"""The replicated log over etcd: its order is etcd's, its bytes are kept here as well."""
