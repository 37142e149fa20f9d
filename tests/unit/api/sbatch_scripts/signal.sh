#!/bin/bash
#SBATCH --time=0:10:00
#SBATCH --signal=B:SIGUSR1@60
checkpoint() { touch checkpoint; scontrol requeue "$SLURM_JOB_ID"; }
trap checkpoint USR1
./long &
wait
