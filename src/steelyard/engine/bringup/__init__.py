"""How do bare machines become a Slurm cluster? What is seen of each over SSH, the cluster's files, the plan, its carrying out.

`seen.py` has the script that a machine answers, `node.py` and `*_conf.py` make Slurm's files of that, `plan.py` says what is left
to do; all these are pure. `ssh.py` and `carry_out.py` are the edge.
"""
