"""The store on Aerospike: its address, its client, the layout of its records, and the store."""
