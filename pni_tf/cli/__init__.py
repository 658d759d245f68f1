"""The commands: absl flags in, library calls out."""
