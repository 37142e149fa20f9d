"""In which order may states follow each other? Closed transition tables, one file per noun. Never reads a clock, never writes."""
