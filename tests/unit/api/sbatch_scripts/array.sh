#!/bin/bash
#SBATCH --array=0-99%8
#SBATCH --output=out/%A_%4a.txt
#SBATCH --cpus-per-task=1
#SBATCH --time=10
input=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" files.txt)
python process.py "$input"
