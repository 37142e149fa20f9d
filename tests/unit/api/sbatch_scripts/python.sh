#!/usr/bin/env python3
# An interpreter of another kind.
#SBATCH --job-name=py --time=5
#   SBATCH is not an option here

#SBATCH --no-requeue
##SBATCH --partition=commented-out
import os
#SBATCH --mem=1G
print(os.environ["SLURM_JOB_ID"])
