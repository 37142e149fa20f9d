#!/bin/bash
#SBATCH -J llm
#SBATCH -N1 -n1 -c 16
#SBATCH --gres=gpu:h100:4
#SBATCH --mem 256GB
#SBATCH -t 12:00:00
#SBATCH -A nlp-lab
#SBATCH -q high
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append

nodes=( $( scontrol show hostnames $SLURM_JOB_NODELIST ) )
head_node=${nodes[0]}
srun torchrun --nnodes $SLURM_NNODES --nproc_per_node 4 --rdzv_id $SLURM_JOB_ID \
  --rdzv_backend c10d --rdzv_endpoint $head_node:29500 train.py
