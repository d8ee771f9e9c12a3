"""Kubernetes itself: its parts, images, certificates, client and readiness."""
