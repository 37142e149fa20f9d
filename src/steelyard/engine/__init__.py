"""How does Steelyard stand on another batch system? Slurm."""
