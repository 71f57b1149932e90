"""The distributed store: Aerospike's address, its client, how users lie in it, the store."""
