// __nv_bfloat16 is in cuda_on_cpu.h.
