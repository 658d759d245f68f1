"""Every setting of a training and of an evaluation: default, bounds, choices and help.

Each group of settings is a small frozen dataclass, and each of its fields is a flag of
`bin/train` or `bin/evaluate` of the same name, so messages write it as a flag. Nothing
here imports TensorFlow or NumPy, so that the commands answer `--help` at once.
"""
