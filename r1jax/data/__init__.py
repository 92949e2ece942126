"""From documents to model batches: sources, mixing, order, packing, shifting, reading ahead.

records ──sources──▶ rows ──mix, order──▶ documents of a shard ──pack──▶ lines ──batch──▶ Batch
                                        └───────────── stream ─────────────┘
"""
