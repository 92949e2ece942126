"""From token rows to model batches: packing, shifting, order."""
