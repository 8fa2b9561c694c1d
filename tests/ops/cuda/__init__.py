"""Tests of the CUDA kernels: in an emulator on CPUs, in machine code, and (marked `gpu`) on GPUs."""
