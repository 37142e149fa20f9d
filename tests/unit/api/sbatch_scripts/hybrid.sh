#!/bin/bash
#SBATCH --nodes=1 --ntasks=4 --cpus-per-task=4 --exclusive
#SBATCH --time=01:30:00
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
export OMP_PLACES=cores
srun --cpu-bind=cores ./hybrid
