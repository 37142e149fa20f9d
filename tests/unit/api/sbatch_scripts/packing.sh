#!/bin/bash
#SBATCH --ntasks=4
#SBATCH --begin=now+1hour
for i in $(seq 1 16); do
    srun --exclusive -n1 ./one "$i" &
done
wait
