#!/bin/bash
#SBATCH --dependency=afterok:12:13,afterany:14_3
#SBATCH --kill-on-invalid-dep=yes
#SBATCH -D results
#SBATCH -o step-%j.log
jid=$(sbatch --parsable --dependency=afterok:$SLURM_JOB_ID next.sh)
echo "next: $jid"
