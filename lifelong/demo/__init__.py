"""``lifelong demo``: the whole system on real purchases and a real Kafka."""
