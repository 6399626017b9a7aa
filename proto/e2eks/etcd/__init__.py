"""Messages to etcd, and what the replicated log keeps there. Only replication.etcd knows them."""
