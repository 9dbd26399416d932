"""What a training will take, worked out without a GPU: memory, arithmetic, time, and what the loaders must deliver.

The real model is built on the meta device and its training step is run with tensors that have shapes and no numbers
(`step`), while every operator's memory, arithmetic and traffic are counted (`watch`). A GPU's data sheet (`gpus`) turns
the counts into times (`roofline`), and both into a plan for any number of them (`estimate`).
"""
