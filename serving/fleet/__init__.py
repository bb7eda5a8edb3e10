"""More than one machine, on Ray: servers as replicas, shards handed to workers."""
