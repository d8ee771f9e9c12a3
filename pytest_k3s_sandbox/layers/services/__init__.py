"""Services: DNAT rules from Services and EndpointSlices, which is what kube-proxy does."""
