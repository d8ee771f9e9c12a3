"""The command ``k3s-sandbox``."""
