"""The smallest MPI program."""

#: an MPI program without a compiler: each rank adds up everybody's number
RING = """
import ctypes
mpi = ctypes.CDLL("libmpi.so.40", mode=ctypes.RTLD_GLOBAL)
names = ("ompi_mpi_comm_world", "ompi_mpi_int", "ompi_mpi_op_sum")
world, kind, add = (ctypes.byref(ctypes.c_char.in_dll(mpi, name)) for name in names)
mpi.MPI_Init(None, None)
rank, total = ctypes.c_int(), ctypes.c_int()
mpi.MPI_Comm_rank(world, ctypes.byref(rank))
mpi.MPI_Allreduce(ctypes.byref(ctypes.c_int(rank.value + 1)), ctypes.byref(total), 1, kind, add, world)
print(f"rank {rank.value}, sum {total.value}", flush=True)
mpi.MPI_Finalize()
"""
