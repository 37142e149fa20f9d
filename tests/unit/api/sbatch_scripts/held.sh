#!/bin/bash
#SBATCH -H
#SBATCH --priority=80
#SBATCH --wckey=abc --comment="two words # and a hash"
#SBATCH --tasks-per-node=2
true
