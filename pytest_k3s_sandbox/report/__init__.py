"""Records of a run, their figures, and the reports that are made of them."""
