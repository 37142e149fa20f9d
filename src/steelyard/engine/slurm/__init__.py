"""How does Steelyard speak to a Slurm that others run? By its own commands, whose texts change little (22.05 to 26.05)."""
