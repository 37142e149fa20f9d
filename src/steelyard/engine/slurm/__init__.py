"""How does Steelyard speak to a Slurm that others run? By its own commands, whose texts were the same from 22.05 to 25.11."""
