// __half is in cuda_on_cpu.h.
