#!/bin/bash
#SBATCH --job=short --err=e.txt --out=o.txt
#SBATCH --ntasks 2 --nice=10
#SBATCH
 #SBATCH --time=10
hostname
