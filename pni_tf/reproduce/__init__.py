"""The tables and figures of the paper, and the honest numbers beside them."""
