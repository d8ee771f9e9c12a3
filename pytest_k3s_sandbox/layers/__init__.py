"""The layers around an unmodified node, one folder each."""
