"""What do `srun`, `squeue`, `scancel`, `scontrol` and `sbatch` do inside a job, where no Slurm is?

This package is copied as `slurm` beside small launchers (`runtime/slurm_bin.py`) and runs inside jobs, as their user: it uses
the standard library only, runs on Python 3.10 and later, and imports its own parts relatively. It never imports anything of
`steelyard`.

    main.py       which stand-in is meant
    getopt.py     command lines as getopt_long reads them
    sbatch_table.py  the options of `sbatch`; the server's parser reads the same table
    srun.py       a step: processes side by side in the job's own allocation
    srun_table.py the options of `srun`
    tasks.py      those processes from fork to exit: output, signals, exit code
    cores.py      which CPUs a task is bound to
    steps.py      numbers of steps, and waiting until earlier ones have left room
    mpi.py        steps that `mpirun` has to start
    client.py     the REST API by urllib, and numbers of jobs
    sbatch.py squeue.py scancel.py scontrol.py
    names.py      host lists and file name patterns
"""
