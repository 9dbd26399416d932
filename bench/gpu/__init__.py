"""What checks, times and tunes the GPU kernels: `check` on a GPU, `aot` without one."""
