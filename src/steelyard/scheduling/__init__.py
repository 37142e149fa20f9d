"""Which waiting work goes next? Pure decisions over a queue; `placement` is asked where. Never starts anything."""
