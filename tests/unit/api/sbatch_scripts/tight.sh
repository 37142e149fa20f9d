#!/bin/bash
#SBATCH --ntasks=6 --gpus-per-task=1 --cpus-per-task=3
#SBATCH --mem=0
#SBATCH --time=UNLIMITED
#SBATCH --time=90
srun ./work
