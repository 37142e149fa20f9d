#!/bin/bash
#SBATCH --job-name="gmx md"
#SBATCH --time=24:00:00
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --cpus-per-task=2
#SBATCH --account=chem/bob
#SBATCH --constraint="ib&haswell"

set -euo pipefail
export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK
gmx mdrun -ntmpi $SLURM_NTASKS -ntomp $OMP_NUM_THREADS -deffnm md -maxh 23.5 -cpi md.cpt
