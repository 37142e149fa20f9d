#!/bin/bash
#SBATCH --job-name=jupyter
#SBATCH --mem-per-gpu=40G --gpus=1
#SBATCH --cpus-per-gpu=6
#SBATCH --output=/dev/null
#SBATCH --export=ALL,PORT=8888,"NAME='a,b'"
port=$(shuf -i 8000-9999 -n 1)
jupyter lab --no-browser --port $port
