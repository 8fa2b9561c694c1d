"""For every test: one thread. The tensors are small, and threads that wait for each other cost minutes."""

import torch

torch.set_num_threads(1)
