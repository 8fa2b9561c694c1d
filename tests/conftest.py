"""Run every test with one thread: the tensors are small, and synchronising threads would cost minutes."""

import torch

torch.set_num_threads(1)
