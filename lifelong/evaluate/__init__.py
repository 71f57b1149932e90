"""``lifelong evaluate``: what a run or a bundle is worth on held-out samples."""
