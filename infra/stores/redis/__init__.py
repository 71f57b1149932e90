"""The store on Redis, Valkey, and whatever else speaks their protocol and runs their scripts."""
