#!/bin/bash -l
#SBATCH --ntasks=8
#SBATCH --mem-per-cpu=2000
#SBATCH --time=30
#SBATCH --hint=nomultithread
#SBATCH --distribution=block:block
module load openmpi
mpirun ./osu_latency
