"""Device code, installed from the `kernels/` folder of the source tree."""
